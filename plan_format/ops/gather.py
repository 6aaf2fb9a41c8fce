"""Gather: slices along one axis, by their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import inside, moved
from hjgc.plan_format.ops.shapes import axis_of, present


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [..., axis, ...] at x1 [any shape]: the axis gives way to those of x1. Numbers under 0 count from behind."""
    del outputs
    types = present(inputs)
    if len(types) != 2 or types[1].dtype not in ("int64", "int32"):
        raise ValueError("expected a tensor and whole numbers")
    x, indices = types
    axis = axis_of(attributes["axis"], len(x.shape))
    return (TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int) -> None:
    """Raises IndexError for a number outside the axis."""
    x, indices = inputs
    flat = inside(indices, x.shape[axis]).reshape(-1)
    moved(outputs[0]).copy_(moved(x).index_select(axis, flat).reshape(outputs[0].shape))


OP = tensor_op("gather", "y0 = the slices x1 of x0 along `axis`", {"axis": int}, infer, reference)
