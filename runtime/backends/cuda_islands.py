"""How do islands run in the middle of a GPU's work?

Where ONNX Runtime has its CUDA provider, on the plan's memory and the serving stream (`cuda_provider.py`). What that
does not take it computes on the CPU: rows come down and go up again through page-locked memory, in the order of the
stream, and how many bytes that takes is counted.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.errors import PlanError, RunError
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Buffer, IslandCall, Launch, Operand, Phase, Plan, Weight
from hjgc.runtime.backend import BackendRefused, Rows, sizes_of
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle
from hjgc.runtime.backends.cuda_memory import ALIGNMENT, DeviceMemory
from hjgc.runtime.backends.cuda_provider import Recorder, provider_for
from hjgc.runtime.backends.element_types import numpy_dtype
from hjgc.runtime.island_sessions import Place, drawing, onnxruntime_for
from hjgc.runtime.islands import Islands, Stop, Values, ends

KEPT = 16
"""Bound calls that are kept: of decode each island's one, of a prompt the lengths met last."""
WARM_UP_SECONDS = 1.0
"""After which an island that nobody called is ended."""
FUNCTION_STAGING = 64 << 20
"""Bytes of page-locked memory for a function's islands, whose largest sizes may never come; more once a call needs
it."""


@dataclass
class _Bound:
    """One launch for so many rows: what comes down, the call, what goes up; `used` bytes of page-locked memory."""

    used: int = 0
    down: list[tuple[Bytes, int]] = field(default_factory=list[tuple[Bytes, int]])
    up: list[tuple[int, Bytes]] = field(default_factory=list[tuple[int, Bytes]])
    call: Callable[[Stop | None], bool] = lambda stop: True

    def cross(self, operand: Operand, view: NDArray[Any], address: int) -> None:
        """The operand is the host's while the island runs."""
        raw = view.reshape(-1).view(np.uint8)
        if view.nbytes and operand.access == "read":
            self.down.append((raw, address))
        elif view.nbytes:
            self.up.append((address, raw))


class DeviceIslands:
    """The islands of a plan on one GPU, run one at a time by the thread that has the device. `close` it once the stream
    is idle."""

    def __init__(
        self, driver: Driver, file: PlanFile, root: Path, memory: DeviceMemory, stream: Handle, values: Values
    ) -> None:
        """Raises PlanError for weights that are not those compiled against, and where ONNX Runtime is missing."""
        self._driver, self._plan, self._memory, self._stream = driver, file.plan, memory, stream
        self._values = values
        self._fixed = {("weight", i): place for i, place in host_weights(file.plan, root, file.path).items()}
        self._fixed |= {("constant", i): place for i, place in host_constants(file).items()}
        self._islands = Islands(file, provider_for(onnxruntime_for(file), stream), _movable(file.plan))
        self._calls: OrderedDict[tuple[str, int, Rows], _Bound] = OrderedDict()
        self._staging = driver.allocate_host(self._most_needed())
        self._recorder: Recorder | None = None
        self._sent: dict[int, int] = {}
        try:
            self._send_weights()
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def _warm_up(self) -> None:
        """ONNX Runtime loads code when a session first runs on the device, which takes a tenth of a second: no request
        shall wait for it. What draws random numbers does not run for nobody."""
        met = {self._plan.islands[number].sha256 for number in drawing(self._plan)}
        for phase in self._plan.phases:
            for number, launch in enumerate(phase.launches):
                if not is_island(launch) or not self._islands.opened(_island(launch)).on_device:
                    continue
                sha256 = self._plan.islands[_island(launch)].sha256
                if sha256 not in met:
                    met.add(sha256)
                    self._run_on_zeros(phase, number)

    def _run_on_zeros(self, phase: Phase, number: int) -> None:
        """The fewest rows. What fails then, or takes long, says so where a call runs it."""
        launch, rows = phase.launches[number], _fewest(phase)
        sizes = sizes_of(phase, rows)
        for operand in launch.operands:
            if operand.space == "buffer" and operand.access == "read":
                address = self._memory.address("buffer", operand.index, phase.name)
                self._driver.zero(address, _bytes(phase.buffers[operand.index], sizes), self._stream)
        ended = time.perf_counter() + WARM_UP_SECONDS
        with self.uncounted(), suppress(RunError):
            self.run(phase, number, rows, lambda: time.perf_counter() > ended)

    def _send_weights(self) -> None:
        """Those that islands read on the device, where no launch reads them too."""
        for _, launch in _island_launches(self._plan):
            opened, (inputs, _) = self._islands.opened(_island(launch)), ends(launch)
            for operand, there in zip(inputs, opened.inputs, strict=True):
                if there and operand is not None and operand.space == "weight" and operand.index not in self._sent:
                    self._send_weight(operand.index)

    def _send_weight(self, index: int) -> None:
        if self._plan.weights[index].placement == "device":
            self._sent[index] = self._memory.address("weight", index)
            return
        data = self._fixed["weight", index].memory
        assert data is not None, "a weight of the host's"
        self._sent[index] = self._allocated(data.nbytes)
        self._memory.write(self._sent[index], np.ascontiguousarray(data).reshape(-1).view(np.uint8))

    def _allocated(self, size: int) -> int:
        try:
            return self._driver.allocate(size)
        except BackendRefused as refused:
            problem = f"expected {size >> 20} MiB of the device for a weight that islands read: {refused}"
            raise RunError(f"{problem}; with onnxruntime in place of onnxruntime-gpu the host keeps it") from None

    @property
    def weight_bytes(self) -> int:
        """Device memory that is held for weights which only islands read."""
        return sum(weight.bytes for weight in map(self._plan.weights.__getitem__, self._own_weights()))

    def _own_weights(self) -> list[int]:
        return [index for index in self._sent if self._plan.weights[index].placement != "device"]

    def graphless(self, launch: Launch, *, padded: bool) -> str:
        """Why no graph can hold the launch's island, `padded` with rows that do not count; empty if one can."""
        opened = self._islands.opened(_island(launch))
        return opened.graphless or (opened.padless if padded else "")

    def record(self, phase: Phase, number: int, tokens: Rows) -> Handle:
        """A graph of the launch's island for so many rows, which the caller drops. By the thread that builds graphs.
        Raises BackendRefused."""
        if self._recorder is None:
            self._recorder = Recorder(self._driver, self._islands)
        launch, sizes = phase.launches[number], sizes_of(phase, tokens)
        inputs, outputs = ([self._on_device(phase, each, sizes) for each in end] for end in ends(launch))
        return self._recorder.record(_island(launch), inputs, outputs)

    @property
    def bytes(self) -> int:
        """Page-locked memory held now."""
        return self._staging.nbytes

    def run(self, phase: Phase, number: int, tokens: Rows, stop: Stop | None) -> bool:
        """Whether it ran to its end. Raises RunError that names the island's nodes."""
        bound = self._call(phase, number, tokens)
        begun = time.perf_counter()
        for memory, address in bound.down:
            self._driver.fetch(memory, address, self._stream)
        if bound.down or bound.up:  # what went up for the island before may still be read
            self._driver.wait(self._stream)
        fetched = time.perf_counter()
        if not bound.call(stop):
            return False
        done = time.perf_counter()
        for address, memory in bound.up:
            self._driver.send(address, memory, self._stream)
        counts = self._islands.running
        counts.to_host += sum(memory.nbytes for memory, _ in bound.down)
        counts.to_device += sum(memory.nbytes for _, memory in bound.up)
        counts.copy_seconds += fetched - begun + time.perf_counter() - done
        return True

    def _call(self, phase: Phase, number: int, tokens: Rows) -> _Bound:
        key = (phase.name, number, tokens)
        if key not in self._calls:
            self._make_room(self._need(phase, phase.launches[number], sizes_of(phase, tokens)))
            self._calls[key] = self._bind(phase, phase.launches[number], tokens)
            if len(self._calls) > max(KEPT, 2 * len(self._plan.islands)):
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        return self._calls[key]

    def _most_needed(self) -> int:
        """Bytes that the neediest island needs at the most rows; of a function no more than FUNCTION_STAGING."""
        most = 1
        for phase, launch in _island_launches(self._plan):
            most = max(most, self._need(phase, launch, {size.name: size.high for size in phase.sizes}))
        return min(most, FUNCTION_STAGING) if self._plan.is_function else most

    def _need(self, phase: Phase, launch: Launch, sizes: Mapping[str, int]) -> int:
        """Bytes that those of a launch's operands which cross take in page-locked memory."""
        opened, (inputs, outputs) = self._islands.opened(_island(launch)), ends(launch)
        crossing = [
            phase.buffers[operand.index]
            for operand, there in zip(inputs + outputs, opened.inputs + opened.outputs, strict=True)
            if operand is not None and operand.space == "buffer" and not there
        ]
        need = (_bytes(buffer, sizes) for buffer in crossing)
        return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in need)

    def _make_room(self, need: int) -> None:
        """Page-locked memory of so many bytes; no call is bound to the old."""
        if need <= self.bytes:
            return
        self._driver.wait(self._stream)
        staging, self._staging = self._staging, self._driver.allocate_host(need)
        self._calls.clear()
        self._driver.free_host(staging)

    def _bind(self, phase: Phase, launch: Launch, tokens: Rows) -> _Bound:
        bound, sizes, opened = _Bound(), sizes_of(phase, tokens), self._islands.opened(_island(launch))
        inputs, outputs = (
            [
                self._on_device(phase, operand, sizes) if there else self._on_host(bound, phase, operand, sizes)
                for operand, there in zip(operands, flags, strict=True)
            ]
            for operands, flags in zip(ends(launch), (opened.inputs, opened.outputs), strict=True)
        )
        bound.call = self._islands.bind(_island(launch), inputs, outputs)
        return bound

    def _on_host(self, bound: _Bound, phase: Phase, operand: Operand | None, sizes: Mapping[str, int]) -> Place:
        """Where the operand lies in the host's memory; of a buffer, in page-locked memory, which the call fills."""
        assert operand is not None, "islands leave nothing out"
        if operand.space == "value":
            return self._values.place(phase, operand.index)
        if operand.space != "buffer":
            return self._fixed[operand.space, operand.index]
        view, dtype = self._view(phase, operand, sizes, bound.used)
        bound.used += -(-view.nbytes // ALIGNMENT) * ALIGNMENT
        bound.cross(operand, view, self._memory.address("buffer", operand.index, phase.name))
        return Place(memory=view, dtype=dtype)

    def _on_device(self, phase: Phase, operand: Operand | None, sizes: Mapping[str, int]) -> Place:
        """Where the operand lies in the device's memory."""
        assert operand is not None, "islands leave nothing out"
        space, index = operand.space, operand.index
        if space == "buffer":
            buffer = phase.buffers[index]
            shape, dtype = tuple(evaluate(axis, sizes) for axis in buffer.shape), buffer.dtype
            return Place(address=self._memory.address(space, index, phase.name), shape=shape, dtype=dtype)
        entry = (self._plan.weights if space == "weight" else self._plan.constants)[index]
        address = self._sent[index] if space == "weight" else self._memory.address(space, index)
        return Place(address=address, shape=entry.shape, dtype=entry.dtype)

    def _view(self, phase: Phase, operand: Operand, sizes: Mapping[str, int], place: int) -> tuple[NDArray[Any], str]:
        """The buffer's rows, as they lie in page-locked memory from `place` on."""
        buffer = phase.buffers[operand.index]
        shape = [evaluate(axis, sizes) for axis in buffer.shape]
        raw = self._staging[place : place + prod(shape) * ITEM_BYTES[buffer.dtype]]
        return raw.view(numpy_dtype(buffer.dtype)).reshape(shape), buffer.dtype

    def report(self) -> dict[str, Any]:
        return self._islands.counts.as_data()

    def uncounted(self) -> AbstractContextManager[None]:
        return self._islands.uncounted()

    def close(self) -> None:
        """What the driver refuses keeps nothing else from being given back."""
        self._calls.clear()
        with ExitStack() as undo:
            undo.callback(self._driver.free_host, self._staging)
            for index in self._own_weights():
                undo.callback(self._driver.free, self._sent[index])
            undo.callback(self._islands.close)
            if self._recorder is not None:
                undo.callback(self._recorder.close)


def _bytes(buffer: Buffer, sizes: Mapping[str, int]) -> int:
    return prod(evaluate(axis, sizes) for axis in buffer.shape) * ITEM_BYTES[buffer.dtype]


def _fewest(phase: Phase) -> Rows:
    """The smallest call of the phase that has something to compute."""
    lows = {size.name: min(max(1, size.low), size.high) for size in phase.sizes}
    return tuple(lows.values()) if phase.entry == "function" else lows.get("tokens", 1)


def _island_launches(plan: Plan) -> list[tuple[Phase, Launch]]:
    launches = [(phase, launch) for phase in plan.phases for launch in phase.launches]
    return [pair for pair in launches if is_island(pair[1])]


def is_island(launch: Launch) -> bool:
    return any(isinstance(kernel, IslandCall) for kernel in launch.kernels.values())


def _island(launch: Launch) -> int:
    """The number of the island that the launch runs."""
    return next(kernel.island for kernel in launch.kernels.values() if isinstance(kernel, IslandCall))


def _movable(plan: Plan) -> set[int]:
    """The islands of which nothing is a value that only the host holds."""
    fixed = {
        _island(launch)
        for _, launch in _island_launches(plan)
        if any(operand.space == "value" for operand in launch.operands)
    }
    return set(range(len(plan.islands))) - fixed


def _read(plan: Plan, space: str) -> set[int]:
    """The entries of a table that islands read."""
    operands = (operand for _, launch in _island_launches(plan) for operand in launch.operands)
    return {operand.index for operand in operands if operand.space == space}


def host_constants(file: PlanFile) -> dict[int, Place]:
    """The constants that islands read."""
    wanted = {i: file.plan.constants[i] for i in _read(file.plan, "constant")}
    section = file.section("constants") if wanted else b""
    places: dict[int, Place] = {}
    for i, constant in wanted.items():
        data = np.frombuffer(section[constant.offset : constant.offset + constant.length], np.uint8).copy()
        memory = data.view(numpy_dtype(constant.dtype)).reshape(constant.shape)
        places[i] = Place(memory=memory, dtype=constant.dtype)
    return places


def host_weights(plan: Plan, root: Path, path: Path) -> dict[int, Place]:
    """The weights that islands read, mapped where they lie in their files. Raises PlanError."""
    wanted = sorted(_read(plan, "weight"))
    return {i: _mapped(plan, plan.weights[i], root, path) for i in wanted}


def _mapped(plan: Plan, weight: Weight, root: Path, path: Path) -> Place:
    (source, *more) = weight.sources
    plain = not more and source.dtype == weight.dtype and source.blocks is None and not source.transpose
    if not plain or source.slice_start is not None or source.slice_stop is not None:
        problem = f"expected {weight.name!r} to lie in its file as an island wants it, found it otherwise"
        raise PlanError(path, problem, field="$.weights", next_step="compile the model again")
    file = check_weight_file(plan.files[source.file], root, path)
    number = os.open(file, os.O_RDONLY)
    try:
        whole = np.frombuffer(mmap.mmap(number, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(number)
    data = whole[source.offset : source.offset + source.length]
    kind = numpy_dtype(weight.dtype)
    aligned = data if source.offset % kind.itemsize == 0 else data.copy()
    return Place(memory=aligned.view(kind).reshape(weight.shape), dtype=weight.dtype)


def island_groups(phase: Phase, launches: tuple[int, ...]) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    """Runs of launches of one kind, in order: islands or not."""
    groups: list[tuple[bool, list[int]]] = []
    for number in launches:
        foreign = is_island(phase.launches[number])
        if not groups or groups[-1][0] != foreign:
            groups.append((foreign, []))
        groups[-1][1].append(number)
    return tuple((foreign, tuple(numbers)) for foreign, numbers in groups)
