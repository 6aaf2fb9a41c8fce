"""Reverse sequence: the first elements along one axis in reverse, in each batch as many as it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import moved, whole_numbers
from hjgc.plan_format.ops.shapes import axis_of, present


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 with x1 [batch] elements along `time` reversed for each of the axis `batch`."""
    del outputs
    types = present(inputs)
    if len(types) != 2:
        raise ValueError("expected a tensor and lengths")
    x, lengths = types[0], whole_numbers(types[1])
    time, batch = axis_of(attributes["time"], len(x.shape)), axis_of(attributes["batch"], len(x.shape))
    if time == batch or lengths.shape != (x.shape[batch],):
        raise ValueError(f"expected a length for each of axis {batch} of {x}, found {lengths}")
    return (x,)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, time: int, batch: int) -> None:
    """Raises IndexError for a length that the axis has not."""
    import torch

    x, lengths = inputs
    count = x.shape[time]
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > count):
        raise IndexError(f"expected lengths of 0 to {count}, found {int(lengths.min())} to {int(lengths.max())}")
    along = [-1 if i == time else 1 for i in range(x.ndim)]
    across = [-1 if i == batch else 1 for i in range(x.ndim)]
    places, ends = torch.arange(count).reshape(along), lengths.long().reshape(across)
    source = torch.where(places < ends, ends - 1 - places, places)
    moved(outputs[0]).copy_(moved(x).gather(time, source.expand(x.shape)))


OP = tensor_op(
    "reverse_sequence",
    "y0 = x0 with the first x1 elements along `time` in reverse",
    {"time": int, "batch": int},
    infer,
    reference,
)
