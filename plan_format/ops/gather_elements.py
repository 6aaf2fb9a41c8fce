"""Gather elements: each from its own place along one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import inside, moved, whole_numbers
from hjgc.plan_format.ops.shapes import axis_of, present
from hjgc.plan_format.sizes import Expression


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 at x1, which has the shape of the result: as x0's, or smaller, but for `axis`."""
    del outputs
    types = present(inputs)
    if len(types) != 2 or len(types[0].shape) != len(types[1].shape):
        raise ValueError("expected a tensor and whole numbers of as many axes")
    x, indices = types[0], whole_numbers(types[1])
    axis = axis_of(attributes["axis"], len(x.shape))
    if not within(x.shape, indices.shape, axis):
        raise ValueError(f"expected numbers for places of {x}, found {indices}")
    return (TensorType(x.dtype, indices.shape),)


def within(whole: Sequence[Expression], part: Sequence[Expression], axis: int) -> bool:
    """Does one shape fit into the other, along all axes but one?"""
    return all(
        i == axis or few == many or (isinstance(few, int) and isinstance(many, int) and few <= many)
        for i, (many, few) in enumerate(zip(whole, part, strict=True))
    )


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int) -> None:
    """Raises IndexError for a number outside the axis."""
    x, indices = inputs
    moved(outputs[0]).copy_(moved(x).gather(axis, inside(indices, x.shape[axis])))


OP = tensor_op("gather_elements", "y0 = the elements of x0 at x1 along `axis`", {"axis": int}, infer, reference)
