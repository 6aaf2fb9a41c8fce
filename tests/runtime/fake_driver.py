"""A CUDA driver for tests: addresses lead to bytes that live here, kernels are only written down.

Copies from and to page-locked memory happen as late as they may: when an event behind them, or their stream, is waited
for. So whoever touches such memory too early is found out.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hjgc.runtime.backends.cuda_digest import text
from hjgc.runtime.backends.cuda_driver import DriverError, LaunchShape
from tests.runtime.digests import digest
from tests.runtime.norms import CODE, KINDS

DIGESTS = text().encode() + b"\0"
WIDTHS = (8, 8, 8, 8, 4, 4, 8, 8)


class FakeDriver:
    """Kernels are written down with the parameters that they would get. May be used from many threads."""

    def __init__(self, target: str = "sm_90") -> None:
        self.target = target
        self.log: list[str] = []
        self.widths: tuple[int, ...] = WIDTHS
        self.refuses: set[str] = set()
        self.most_locked = 0
        self._memory: dict[int, np.ndarray] = {}
        self._locked: dict[int, np.ndarray] = {}
        self._handles = self._timers = self.living_timers = 0
        self._late: list[tuple[int, Callable[[], None]]] = []
        self._issued = 0
        self._lock = threading.RLock()

    def _handle(self, what: str) -> str:
        self._handles += 1
        return f"{what}{self._handles}"

    def _do(self, name: str) -> None:
        self._refuse(name)
        self.log.append(name)

    def _refuse(self, name: str) -> None:
        if name in self.refuses:
            raise DriverError(name, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory")

    def make_current(self) -> None: ...

    def close(self) -> None:
        self._do("close")

    def allocate(self, size: int) -> int:
        self._do("allocate")
        address = (len(self._memory) + 1) << 32
        self._memory[address] = np.full(size, 0xEE, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self._memory[address]
        self._do("free")

    def _at(self, address: int, size: int) -> np.ndarray:
        base = max(base for base in self._memory if base <= address)
        piece = self._memory[base][address - base : address - base + size]
        assert len(piece) == size, "outside what was allocated"
        return piece

    def zero(self, address: int, size: int, stream: str) -> None:
        self._catch_up()
        self._at(address, size)[:] = 0

    def write(self, address: int, data: np.ndarray, stream: str) -> None:
        self._do("write")
        self._catch_up()
        self._at(address, data.nbytes)[:] = data

    def read(self, address: int, size: int, stream: str) -> np.ndarray:
        self._catch_up()
        return self._at(address, size).copy()

    def read_rows(self, address: int, pitch: int, width: int, rows: int, stream: str) -> np.ndarray:
        self._do("read_rows")
        return np.concatenate([self.read(address + i * pitch, width, stream) for i in range(rows)])

    def fill_rows(self, address: int, pitch: int, width: int, rows: int, value: int, stream: str) -> None:
        self._do("fill_rows")
        self._catch_up()
        for i in range(rows):
            self._at(address + i * pitch, width)[:] = value

    def allocate_host(self, size: int) -> np.ndarray:
        self._do("allocate_host")
        memory = np.full(size, 0xEE, np.uint8)
        with self._lock:
            self._locked[memory.ctypes.data] = memory
            self.most_locked = max(self.most_locked, sum(piece.nbytes for piece in self._locked.values()))
        return memory

    def free_host(self, memory: np.ndarray) -> None:
        assert not self._late, "freed under a copy"
        del self._locked[memory.ctypes.data]
        self._do("free_host")

    def _is_locked(self, memory: np.ndarray) -> bool:
        place = memory.ctypes.data
        return any(base <= place and place + memory.nbytes <= base + m.nbytes for base, m in self._locked.items())

    def send(self, address: int, memory: np.ndarray, stream: str) -> None:
        self._do("send")
        assert self._is_locked(memory)
        target = self._at(address, memory.nbytes)
        self._postpone(lambda: np.copyto(target, memory))

    def send_rows(self, address: int, pitch: int, memory: np.ndarray, rows: int, stream: str) -> None:
        self._do("send_rows")
        assert self._is_locked(memory)
        parts = memory.reshape(rows, -1)
        assert parts.shape[1] <= pitch
        targets = [self._at(address + i * pitch, parts.shape[1]) for i in range(rows)]

        def copy() -> None:
            for target, part in zip(targets, parts, strict=True):
                target[:] = part

        self._postpone(copy)

    def fetch(self, memory: np.ndarray, address: int, stream: str) -> None:
        self._do("fetch")
        assert self._is_locked(memory)
        source = self._at(address, memory.nbytes)
        self._postpone(lambda: np.copyto(memory, source))

    def _postpone(self, copy: Callable[[], None]) -> None:
        with self._lock:
            self._issued += 1
            self._late.append((self._issued, copy))

    def _catch_up(self, until: float = float("inf")) -> None:
        """Make the copies issued up to this one."""
        with self._lock:
            while self._late and self._late[0][0] <= until:
                self._late.pop(0)[1]()

    def free_bytes(self) -> tuple[int, int]:
        self._refuse("free_bytes")
        return (1 << 20) - sum(piece.nbytes for piece in self._memory.values()), 1 << 20

    def make_event(self) -> dict[str, int]:
        self._do("make_event")
        return {}

    def make_timer(self) -> dict[str, int]:
        """Time passes by a millisecond with each one that is recorded."""
        self._refuse("make_timer")
        self._timers += 1
        self.living_timers += 1
        return {"made": self._timers}

    def milliseconds(self, begin: dict[str, int], end: dict[str, int]) -> float:
        self._refuse("milliseconds")
        return float(end["made"] - begin["made"])

    def record(self, event: dict[str, int], stream: str) -> None:
        event["at"] = self._issued

    def wait_event(self, event: dict[str, int]) -> None:
        if "wait_event" in self.refuses:
            raise DriverError("wait_event", "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal address was met")
        self._catch_up(event.get("at", 0))

    def drop_event(self, event: dict[str, int]) -> None:
        self._do("drop_event")
        self.living_timers -= "made" in event

    def make_stream(self) -> str:
        return self._handle("stream")

    def wait(self, stream: str) -> None:
        self._do(f"wait {stream}")
        self._catch_up()

    def drop_stream(self, stream: str) -> None:
        self._do(f"drop {stream}")

    def load_module(self, code: bytes) -> str:
        if code == DIGESTS:
            self._refuse("digests")
            return "digests"
        self._do("load_module")
        assert code == CODE
        return self._handle("module")

    def unload_module(self, module: str) -> None:
        self._do("unload_module" if module != "digests" else "unload digests")

    def function(self, module: str, entry: str, shared_bytes: int) -> str:
        return entry

    def parameter_widths(self, function: str) -> tuple[int, ...]:
        return self.widths

    def configure(self, shape: LaunchShape, overlap: bool, stream: str) -> tuple[LaunchShape, bool, str]:
        return shape, overlap, stream

    def launch(self, config: tuple[LaunchShape, bool, str], function: str, parameters: int) -> None:
        shape, overlap, stream = config
        if function.startswith("digest_"):
            self._digest(shape, function, parameters)
            return
        self._do(f"launch {function}{shape.grid} x {shape.threads} {'early' if overlap else 'full'} on {stream}")
        self.parameters = values_at(parameters)

    def _digest(self, shape: LaunchShape, function: str, parameters: int) -> None:
        """What the kernel computes: it adds to the sum that is there."""
        self._do(function)
        self._catch_up()
        addresses = (ctypes.c_uint64 * 4).from_address(parameters)
        address, pitch, count, out = (ctypes.c_uint64.from_address(place).value for place in addresses)
        item = 4 if function == "digest_words" else 1
        rows = [self._at(address + i * pitch, count * item) for i in range(shape.grid[1])]
        target = self._at(out, 8).view(np.uint64)
        target += np.uint64(digest(np.concatenate(rows), item))

    def make_graph(self) -> list[str]:
        return []

    def add_kernel(
        self,
        graph: list[str],
        shape: LaunchShape,
        call: tuple[str, int],
        before: Sequence[int],
        early: Sequence[bool],
    ) -> int:
        self._do("add_kernel")
        after = " ".join(f"{n}{'early' if kind else 'full'}" for n, kind in zip(before, early, strict=True))
        blocks, rows = shape.grid[0], values_at(call[1])[4]
        graph.append(f"{call[0]} of {blocks} for {rows} after {after or 'nothing'}")
        return len(graph) - 1

    def instantiate(self, graph: list[str], stream: str) -> tuple[str, ...]:
        self._do(f"instantiate on {stream}")
        return tuple(graph)

    def drop_graph(self, graph: list[str]) -> None:
        self._do("drop_graph")

    def replay(self, executable: tuple[str, ...], stream: str) -> None:
        self._do(f"replay on {stream}")

    def drop_executable(self, executable: tuple[str, ...]) -> None:
        self._do("drop_executable")


def values_at(parameters: int) -> tuple[Any, ...]:
    """What the driver would copy: each parameter read from where its address says."""
    addresses = (ctypes.c_uint64 * len(KINDS)).from_address(parameters)
    types = {"pointer": ctypes.c_uint64, "scratch": ctypes.c_uint64, "int32": ctypes.c_int32, "float32": ctypes.c_float}
    return tuple(types[kind].from_address(address).value for kind, address in zip(KINDS, addresses, strict=True))
