"""Slice: elements at even distances along every axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import moved
from hjgc.plan_format.ops.shapes import one
from hjgc.plan_format.sizes import Expression


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """Axis i of the result is `starts[i]`, `starts[i] + steps[i]`, ... of the operand's, as many as the plan says. A
    start or an end from behind counts from the axis's size; how many there may be is found from numbers, or the whole
    axis from `starts` on with step 1."""
    x = one(inputs)
    starts, steps = attributes["starts"], attributes["steps"]
    if not len(starts) == len(steps) == len(x.shape) or len(outputs) != 1 or len(outputs[0].shape) != len(x.shape):
        raise ValueError(f"expected a start, a step and a size for each axis of {x}")
    for axis, start, step, size in zip(x.shape, starts, steps, outputs[0].shape, strict=True):
        if step == 0 or not fits(axis, start, step, size):
            raise ValueError(f"expected a slice inside of {x}, found {size} from {start} by {step}")
    return (TensorType(x.dtype, outputs[0].shape),)


def fits(axis: Expression, start: int, step: int, size: Expression) -> bool:
    """Do so many elements lie inside the axis, as far as sizes without their ranges tell? Whoever computes them refuses
    what lies outside."""
    if isinstance(axis, int) and isinstance(size, int):
        first = start if start >= 0 else start + axis
        return size == 0 or (0 <= first < axis and 0 <= first + (size - 1) * step < axis)
    if step == 1 and isinstance(axis, int):
        return 0 <= start <= axis
    if step == 1 and start < 0:
        return size == -start
    return step == 1 and start >= 0 and dims.add(size, start) == dims.canonical(axis)


def reference(
    inputs: Sequence[Any], outputs: Sequence[Any], *, starts: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    import torch

    x, y = moved(inputs[0]), moved(outputs[0])
    for axis, (start, step) in enumerate(zip(starts, steps, strict=True)):
        first = start if start >= 0 else start + x.shape[axis]
        last = first + (y.shape[axis] - 1) * step
        if y.shape[axis] and not (0 <= first < x.shape[axis] and 0 <= last < x.shape[axis]):
            raise IndexError(f"expected elements of {x.shape[axis]}, found {first} to {last}")
        if (first, step, y.shape[axis]) != (0, 1, x.shape[axis]):
            x = x.index_select(axis, torch.arange(y.shape[axis]) * step + first)
    y.copy_(x)


OP = tensor_op(
    "slice",
    "y0 = x0 from `starts` on in `steps`, along every axis",
    {"starts": tuple, "steps": tuple},
    infer,
    reference,
)
