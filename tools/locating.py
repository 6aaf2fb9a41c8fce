"""Which is the first tensor that a plan computes differently from the ONNX model?

The steps that led to the difference run again, launch by launch. What a launch wrote is compared with the ONNX value
that the plan's debug map names for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format import DebugMap, PlanFile
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Launch, LaunchDebug, Operand
from hjgc.runtime.backend import Backend, MemoryRef
from hjgc.tools.judge import Judge
from hjgc.tools.verifying import Step, largest_error, prepare_step, schedule_launches

CACHES = ("full_cache", "ring_cache")
NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "uint32": np.uint32}


@dataclass(frozen=True)
class Difference:
    """What `launch` wrote to `role` in `step` is `error` away, at most, from the ONNX `value`, whose largest magnitude
    is `magnitude`. `weights` are those that the launch reads."""

    step: Step
    launch: str
    role: str
    value: str
    error: float
    magnitude: float
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """`first` is None where no tensor differs; `incomparable` are values of another shape than the plan keeps."""

    first: Difference | None
    compared: int
    incomparable: tuple[str, ...]


def named_values(debug: DebugMap) -> list[str]:
    """All ONNX values that the debug map names."""
    names = (name for phase in debug.phases for launch in phase.launches for name in launch.values.values())
    return list(dict.fromkeys(names))


def first_difference(
    file: PlanFile, debug: DebugMap, backend: Backend, judge: Judge, steps: Sequence[Step], tolerance: float
) -> Search:
    """Run `steps` again from the beginning. A tensor differs where its error is above `tolerance` times its largest
    magnitude, or above `tolerance` itself where that is less than 1. `judge` must show the named values."""
    judge.reset()
    compared = 0
    incomparable: dict[str, None] = {}
    for step in steps:
        judge.step(step.ids)
        for pair in _pairs(file, debug, backend, judge, step):
            if pair.expected is None:
                incomparable[pair.value] = None
                continue
            compared += 1
            difference = pair.difference()
            if difference.error > tolerance * max(1.0, difference.magnitude):
                return Search(difference, compared, tuple(incomparable))
    return Search(None, compared, tuple(incomparable))


@dataclass(frozen=True)
class _Pair:
    """What a launch wrote and what ONNX Runtime computed for it; None where the shapes do not belong together."""

    step: Step
    launch: Launch
    role: str
    value: str
    weights: tuple[str, ...]
    found: NDArray[Any]
    expected: NDArray[Any] | None

    def difference(self) -> Difference:
        assert self.expected is not None
        finite = self.expected[np.isfinite(self.expected)]
        magnitude = float(np.abs(finite).max(initial=0.0))
        error = largest_error(self.found, self.expected)
        return Difference(self.step, self.launch.name, self.role, self.value, error, magnitude, self.weights)


def _pairs(file: PlanFile, debug: DebugMap, backend: Backend, judge: Judge, step: Step) -> Iterator[_Pair]:
    """Runs the step's launches one by one, each once its tensors are asked for."""
    phase = file.plan.phase(step.phase)
    notes = _notes(debug, step.phase)
    prepare_step(backend, step)
    for number in schedule_launches(file, step):
        backend.run(step.phase, [number], len(step.ids))
        launch = phase.launches[number]
        weights = _weights(file, launch)
        for operand in launch.operands:
            value = notes[number].values.get(operand.role)
            if value is None or value not in judge.values:
                continue
            found = _read(file, backend, step, operand)
            expected = _expected(file, operand, judge.values[value])
            yield _Pair(step, launch, operand.role, value, weights, *_aligned(found, expected))


def _notes(debug: DebugMap, phase: str) -> Sequence[LaunchDebug]:
    return next(entry.launches for entry in debug.phases if entry.phase == phase)


def _weights(file: PlanFile, launch: Launch) -> tuple[str, ...]:
    return tuple(file.plan.weights[operand.index].name for operand in launch.operands if operand.space == "weight")


def _read(file: PlanFile, backend: Backend, step: Step, operand: Operand) -> NDArray[Any]:
    """A buffer's rows of this step, a cache's rows from the first on, all of any other state."""
    plan, rows = file.plan, len(step.ids)
    if operand.space == "buffer":
        buffer = plan.phase(step.phase).buffers[operand.index]
        ref = MemoryRef("buffer", operand.index, step.phase)
        shape = tuple(evaluate(axis, {"tokens": rows}) for axis in buffer.shape)
        return _array(backend.snapshot([ref], step.start, rows)[ref], buffer.dtype, shape)
    state, ref = plan.states[operand.index], MemoryRef("state", operand.index)
    if state.kind == "full_cache":
        rows = step.start + rows
        shape = (state.shape[0], rows, state.shape[2])
        return _array(backend.snapshot([ref], 0, rows)[ref], state.dtype, shape)
    return _array(backend.snapshot([ref], step.start, rows)[ref], state.dtype, state.shape)


def _array(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype == "bfloat16":  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return data.view(NUMPY[dtype]).reshape(shape)


def _expected(file: PlanFile, operand: Operand, value: NDArray[Any]) -> NDArray[Any]:
    """The plan keeps the last row of the logits only, and rows before heads where ONNX has heads before rows."""
    if operand.space == "buffer" and value.ndim == 4:
        return value.swapaxes(1, 2)
    is_logits = operand.space == "state" and file.plan.states[operand.index].kind == "logits"
    return value[..., -1:, :] if is_logits else value


def _aligned(found: NDArray[Any], expected: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Both without their leading axes of 1: ONNX has a batch, the plan has none."""
    found, expected = _stripped(found), _stripped(expected)
    return found, expected if found.shape == expected.shape else None


def _stripped(array: NDArray[Any]) -> NDArray[Any]:
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return array
