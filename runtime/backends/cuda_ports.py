"""How do the arguments of a function reach a GPU, and its results the host?

Through page-locked memory that is allocated once, in the order of the serving stream: uploads take their place there
and the call goes on, downloads are all asked for before one wait. What copies need to know at some sizes is worked out
once. Arrays that do not fit there together go in parts, with a wait after each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Phase, Plan, Port
from hjgc.runtime.backend import Rows, Value, sizes_of
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle
from hjgc.runtime.backends.cuda_memory import ALIGNMENT, DeviceMemory, lay_out
from hjgc.runtime.backends.element_types import numpy_dtype
from hjgc.runtime.islands import Values
from hjgc.runtime.ort_values import host_value, in_bits, out_of_bits

STAGING_BYTES = 64 << 20
KEPT = 64
"""Tuples of sizes whose copies are known."""


@dataclass(frozen=True)
class _Copy:
    """One buffer at some sizes: number `number` of the phase's ports, at `address`. `staged` is its place in the
    page-locked memory, and `raw` the bytes of that; none where it goes in parts."""

    number: int
    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    staged: NDArray[Any] | None
    raw: Bytes | None


class Ports:
    """Arguments and results of a plan's phases. For one thread at a time; `close` when the stream is idle."""

    def __init__(
        self,
        driver: Driver,
        plan: Plan,
        memory: DeviceMemory,
        stream: Handle,
        values: Values,
        most: int = STAGING_BYTES,
    ) -> None:
        """`most`: bytes of page-locked memory."""
        self._driver, self._memory, self._stream, self._values = driver, memory, stream, values
        self._phases = {phase.name: phase for phase in plan.phases}
        self._staging = driver.allocate_host(min(most, max(map(_room, plan.phases))))
        self._calls: OrderedDict[tuple[str, Rows], tuple[list[_Copy], list[_Copy]]] = OrderedDict()
        self._under_way = False
        """May copies of a call that was given up still read the page-locked memory?"""

    @property
    def bytes(self) -> int:
        return self._staging.nbytes

    def write(self, phase: str, rows: Rows, values: Sequence[Value]) -> None:
        if self._under_way:
            self._driver.wait(self._stream)
        self._under_way = True
        for copy in self._call(phase, rows)[0]:
            self._send(copy, in_bits(values[copy.number]))
        for port, value in zip(self._phases[phase].arguments, values, strict=True):
            if port.space == "value":
                self._values.put(phase, port.index, value)

    def read(self, phase: str, rows: Rows) -> list[Value]:
        copies = self._call(phase, rows)[1]
        for copy in copies:
            if copy.raw is not None and copy.raw.nbytes:
                self._driver.fetch(copy.raw, copy.address, self._stream)
        self._driver.wait(self._stream)
        self._under_way = False
        arrays = {copy.number: self._taken(copy) for copy in copies}
        return [
            host_value(self._values.get(phase, port.index))
            if port.space == "value"
            else out_of_bits(arrays[number], port.type)
            for number, port in enumerate(self._phases[phase].results)
        ]

    def close(self) -> None:
        self._calls.clear()
        self._driver.free_host(self._staging)

    def _send(self, copy: _Copy, array: NDArray[Any]) -> None:
        if copy.staged is None or copy.raw is None:
            self._send_in_parts(copy.address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        elif copy.raw.nbytes:
            copy.staged[...] = array
            self._driver.send(copy.address, copy.raw, self._stream)

    def _send_in_parts(self, address: int, data: Bytes) -> None:
        for at in range(0, data.nbytes, self.bytes):
            part = data[at : at + self.bytes]
            self._driver.wait(self._stream)  # for the part before
            self._staging[: part.nbytes] = part
            self._driver.send(address + at, self._staging[: part.nbytes], self._stream)

    def _taken(self, copy: _Copy) -> NDArray[Any]:
        """A new array of what has come; what goes in parts comes now."""
        if copy.staged is not None:
            return copy.staged.copy()
        found = np.empty(copy.shape, copy.dtype)
        data = found.reshape(-1).view(np.uint8)
        for at in range(0, data.nbytes, self.bytes):
            part = self._staging[: min(self.bytes, data.nbytes - at)]
            self._driver.fetch(part, copy.address + at, self._stream)
            self._driver.wait(self._stream)
            data[at : at + part.nbytes] = part
        return found

    def _call(self, phase: str, rows: Rows) -> tuple[list[_Copy], list[_Copy]]:
        """The copies of the arguments, and those of the results."""
        key = (phase, rows)
        found = self._calls.get(key)
        if found is None:
            known = self._phases[phase]
            found = self._copies(known, known.arguments, rows), self._copies(known, known.results, rows)
            self._calls[key] = found
            if len(self._calls) > KEPT:
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        return found

    def _copies(self, phase: Phase, ports: Sequence[Port], rows: Rows) -> list[_Copy]:
        sizes = sizes_of(phase, rows)
        buffers = [(number, phase.buffers[port.index]) for number, port in _in_buffers(ports)]
        dtypes = [numpy_dtype(buffer.dtype) for _, buffer in buffers]
        shapes = [tuple(evaluate(axis, sizes) for axis in buffer.shape) for _, buffer in buffers]
        counts = [prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        offsets, total = lay_out(counts)
        copies: list[_Copy] = []
        for (number, buffer), dtype, shape, count, at in zip(buffers, dtypes, shapes, counts, offsets, strict=True):
            address = self._memory.arena_address(buffer)
            raw = self._staging[at : at + count] if total <= self.bytes else None
            staged = None if raw is None else raw.view(dtype).reshape(shape)
            copies.append(_Copy(number, address, dtype, shape, staged, raw))
        return copies


def _in_buffers(ports: Sequence[Port]) -> list[tuple[int, Port]]:
    return [(number, port) for number, port in enumerate(ports) if port.space == "buffer"]


def _room(phase: Phase) -> int:
    """Bytes that the arguments, or the results, take at the largest sizes."""
    totals = (
        lay_out([phase.buffers[port.index].bytes for _, port in _in_buffers(ports)])[1]
        for ports in (phase.arguments, phase.results)
    )
    return max(ALIGNMENT, *totals)
