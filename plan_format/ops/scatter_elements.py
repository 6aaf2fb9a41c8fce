"""Scatter elements: a tensor, of which some elements are others, each at its own place along one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.gather_elements import within
from hjgc.plan_format.ops.indexing import inside, moved, whole_numbers
from hjgc.plan_format.ops.shapes import axis_of, present

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""What becomes of several that meet, the one that was there among them, and torch's word for it. With `none` the others
take its place."""
COMPUTED = (*FLOATS, *SIGNED, "uint8")


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 with x2 at x1, two of one shape that fits into x0's but for `axis`."""
    del outputs
    types = present(inputs)
    if len(types) != 3 or len({len(x.shape) for x in types}) != 1:
        raise ValueError("expected a tensor, whole numbers and a tensor, all of as many axes")
    x, indices, updates = types[0], whole_numbers(types[1]), types[2]
    check_reduction(x, updates, attributes["reduction"])
    axis = axis_of(attributes["axis"], len(x.shape))
    if indices.shape != updates.shape or not within(x.shape, indices.shape, axis):
        raise ValueError(f"expected numbers and elements for places of {x}, found {indices} and {updates}")
    return (x,)


def check_reduction(x: TensorType, updates: TensorType, reduction: str) -> None:
    """Raises ValueError where the one cannot be combined with the other."""
    known = reduction == "none" or (reduction in REDUCTIONS and x.dtype in COMPUTED)
    if not known or updates.dtype != x.dtype:
        raise ValueError(f"expected a reduction that {x.dtype} has, found {reduction!r} with {updates.dtype}")


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int, reduction: str) -> None:
    """Raises IndexError for a number outside the axis."""
    x, indices, updates = inputs
    places = inside(indices, x.shape[axis])
    outputs[0].copy_(x)
    if reduction == "none":
        moved(outputs[0]).scatter_(axis, places, moved(updates))
    else:
        outputs[0].scatter_reduce_(axis, places, updates, REDUCTIONS[reduction])


OP = tensor_op(
    "scatter_elements",
    "y0 = x0 with the elements x2 at x1 along `axis`, by `reduction` where elements meet",
    {"axis": int, "reduction": str},
    infer,
    reference,
)
