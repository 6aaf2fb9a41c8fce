"""Pad: elements more or fewer at the ends of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import moved

MODES = ("constant", "edge", "reflect", "wrap")


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """Element i along an axis is element i - `before` of the operand, as many as the plan says. Outside lies x1, a
    single number (0 if it is left out), or, by the mode, a repetition of what is inside."""
    x, value = (*inputs, None)[:2]
    before = attributes["before"]
    if x is None or len(inputs) > 2 or len(outputs) != 1 or attributes["mode"] not in MODES:
        raise ValueError(f"expected an operand, perhaps a number, and one of {', '.join(MODES)}")
    if not len(before) == len(x.shape) == len(outputs[0].shape):
        raise ValueError(f"expected a number and a size for each axis of {x}, found {before} and {outputs[0]}")
    if value is not None and (value.dtype != x.dtype or any(axis != 1 for axis in value.shape)):
        raise ValueError(f"expected one number of type {x.dtype}, found {value}")
    return (TensorType(x.dtype, outputs[0].shape),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, mode: str, before: tuple[int, ...]) -> None:
    """Raises IndexError where nothing is to be repeated."""
    x, value = inputs[0], inputs[1] if len(inputs) > 1 else None
    if mode == "constant":
        return _surrounded(x, value, outputs[0], before)
    part = moved(x)
    for axis, first in enumerate(before):
        part = part.index_select(axis, _places(outputs[0].shape[axis], first, x.shape[axis], mode))
    moved(outputs[0]).copy_(part)


def _surrounded(x: Any, value: Any, y: Any, before: tuple[int, ...]) -> None:
    y.copy_(value.reshape(())) if value is not None else y.zero_()
    for axis, first in enumerate(before):
        low = max(0, first)
        count = max(0, min(first + x.shape[axis], y.shape[axis]) - low)
        x, y = x.narrow(axis, low - first if count else 0, count), y.narrow(axis, low if count else 0, count)
    y.copy_(x)


def _places(size: int, before: int, count: int, mode: str) -> Any:
    """Which element of `count` lies at each place."""
    import torch

    if size and not count:
        raise IndexError("expected something to repeat, found an axis of size 0")
    places = torch.arange(size) - before
    match mode:
        case "edge":
            return places.clamp(0, max(0, count - 1))
        case "wrap":
            return places % max(1, count)
        case _:
            places = places % max(1, 2 * count - 2)
            return torch.where(places < count, places, 2 * count - 2 - places)


OP = tensor_op(
    "pad",
    "y0 = x0 from place `before` on, and x1 or a repetition around it",
    {"mode": str, "before": tuple},
    infer,
    reference,
)
