"""How do islands run in the middle of a GPU's work? ONNX Runtime computes them on the CPU: their rows come down and go
up again through page-locked memory, in the order of the serving stream, and how many bytes that takes is counted.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import IslandCall, Launch, Operand, Phase, Plan, Weight
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle
from hjgc.runtime.backends.cuda_memory import ALIGNMENT, DeviceMemory
from hjgc.runtime.islands import Islands, Place, Stop, ends

KEPT = 16
"""Bound calls that are kept: of decode each island's one, of a prompt the lengths met last."""
NUMPY = {"bfloat16": "uint16"}
"""What stands for a type that numpy has not."""


@dataclass
class _Bound:
    """One launch for so many rows: what comes down, the call, what goes up."""

    down: list[tuple[Bytes, int]] = field(default_factory=list[tuple[Bytes, int]])
    up: list[tuple[int, Bytes]] = field(default_factory=list[tuple[int, Bytes]])
    call: Callable[[Stop | None], bool] = lambda stop: True


class DeviceIslands:
    """The islands of a plan on one GPU, run one at a time by the thread that serves. `close` it once the stream is
    idle."""

    def __init__(self, driver: Driver, file: PlanFile, root: Path, memory: DeviceMemory, stream: Handle) -> None:
        """Raises PlanError for weights that are not those compiled against, and where ONNX Runtime is missing."""
        self._driver, self._plan, self._memory, self._stream = driver, file.plan, memory, stream
        self._weights = host_weights(file.plan, root, file.path)
        self._islands = Islands(file)
        self._calls: OrderedDict[tuple[str, int, int], _Bound] = OrderedDict()
        self.staging = driver.allocate_host(_room(file.plan))

    def run(self, phase: Phase, number: int, tokens: int, stop: Stop | None) -> bool:
        """Whether it ran to its end. Raises RunError that names the island's nodes."""
        bound = self._call(phase, number, tokens)
        begun = time.perf_counter()
        for memory, address in bound.down:
            self._driver.fetch(memory, address, self._stream)
        self._driver.wait(self._stream)
        fetched = time.perf_counter()
        if not bound.call(stop):
            return False
        done = time.perf_counter()
        for address, memory in bound.up:
            self._driver.send(address, memory, self._stream)
        counts = self._islands.counts
        counts.to_host += sum(memory.nbytes for memory, _ in bound.down)
        counts.to_device += sum(memory.nbytes for _, memory in bound.up)
        counts.copy_seconds += fetched - begun + time.perf_counter() - done
        return True

    def _call(self, phase: Phase, number: int, tokens: int) -> _Bound:
        key = (phase.name, number, tokens)
        if key not in self._calls:
            self._calls[key] = self._bind(phase, phase.launches[number], tokens)
            if len(self._calls) > max(KEPT, 2 * len(self._plan.islands)):
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        return self._calls[key]

    def _bind(self, phase: Phase, launch: Launch, tokens: int) -> _Bound:
        bound, place = _Bound(), 0
        inputs: list[Place] = []
        outputs: list[Place] = []
        for operands, places in zip(ends(launch), (inputs, outputs), strict=True):
            for operand in operands:
                assert operand is not None, "islands leave nothing out"
                if operand.space == "weight":
                    places.append(self._weights[operand.index])
                    continue
                view, dtype = self._view(phase, operand, tokens, place)
                place += -(-view.nbytes // ALIGNMENT) * ALIGNMENT
                address = self._memory.address("buffer", operand.index, phase.name)
                raw = view.reshape(-1).view(np.uint8)
                if operand.access == "read":
                    bound.down.append((raw, address))
                else:
                    bound.up.append((address, raw))
                places.append(Place(memory=view, dtype=dtype))
        kernel = next(kernel for kernel in launch.kernels.values() if isinstance(kernel, IslandCall))
        bound.call = self._islands.bind(kernel.island, inputs, outputs)
        return bound

    def _view(self, phase: Phase, operand: Operand, tokens: int, place: int) -> tuple[NDArray[Any], str]:
        """The buffer's rows, as they lie in page-locked memory from `place` on."""
        buffer = phase.buffers[operand.index]
        shape = [evaluate(axis, {"tokens": tokens}) for axis in buffer.shape]
        raw = self.staging[place : place + prod(shape) * ITEM_BYTES[buffer.dtype]]
        return raw.view(NUMPY.get(buffer.dtype, buffer.dtype)).reshape(shape), buffer.dtype

    def report(self) -> dict[str, Any]:
        return self._islands.counts.as_data()

    def close(self) -> None:
        self._calls.clear()
        self._islands.close()
        self._driver.free_host(self.staging)


def _room(plan: Plan) -> int:
    """Bytes that the neediest island's operands take, at the most rows."""
    most = 1
    for phase in plan.phases:
        sizes = {size.name: size.high for size in phase.sizes}
        for launch in phase.launches:
            if any(isinstance(kernel, IslandCall) for kernel in launch.kernels.values()):
                buffers = [phase.buffers[operand.index] for operand in launch.operands if operand.space == "buffer"]
                need = (prod(evaluate(axis, sizes) for axis in b.shape) * ITEM_BYTES[b.dtype] for b in buffers)
                most = max(most, sum(-(-size // ALIGNMENT) * ALIGNMENT for size in need))
    return most


def host_weights(plan: Plan, root: Path, path: Path) -> dict[int, Place]:
    """The weights that stay on the host, mapped where they lie in their files. Raises PlanError."""
    wanted = {i: weight for i, weight in enumerate(plan.weights) if weight.placement == "cpu"}
    return {i: _mapped(plan, weight, root, path) for i, weight in wanted.items()}


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
    kind = np.dtype(NUMPY.get(weight.dtype, weight.dtype))
    aligned = data if source.offset % kind.itemsize == 0 else data.copy()
    return Place(memory=aligned.view(kind).reshape(weight.shape), dtype=weight.dtype)


def island_groups(phase: Phase, launches: tuple[int, ...]) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    """Runs of launches of one kind, in order: islands or not."""
    groups: list[tuple[bool, list[int]]] = []
    for number in launches:
        foreign = any(isinstance(kernel, IslandCall) for kernel in phase.launches[number].kernels.values())
        if not groups or groups[-1][0] != foreign:
            groups.append((foreign, []))
        groups[-1][1].append(number)
    return tuple((foreign, tuple(numbers)) for foreign, numbers in groups)
