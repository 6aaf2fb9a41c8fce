"""Scatter by places: a tensor, of which some slices are others, each at the numbers of several axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.gather_nd import flat_places
from hjgc.plan_format.ops.indexing import moved, whole_numbers
from hjgc.plan_format.ops.scatter_elements import REDUCTIONS, check_reduction
from hjgc.plan_format.ops.shapes import present


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [axes, rest] with x2 [any, rest] at x1 [any, as many as axes]."""
    del outputs
    types = present(inputs)
    if len(types) != 3 or not types[1].shape:
        raise ValueError("expected a tensor, places in it and a tensor")
    x, indices, updates = types[0], whole_numbers(types[1]), types[2]
    depth = indices.shape[-1]
    if not isinstance(depth, int) or not 1 <= depth <= len(x.shape):
        raise ValueError(f"expected places in {x}, found {indices}")
    check_reduction(x, updates, attributes["reduction"])
    wanted = TensorType(x.dtype, (*indices.shape[:-1], *x.shape[depth:]))
    if updates != wanted:
        raise ValueError(f"expected {wanted} to scatter, found {updates}")
    return (x,)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, reduction: str) -> None:
    """Raises IndexError for a place outside."""
    x, indices, updates = inputs
    depth = indices.shape[-1]
    places = flat_places(indices, x.shape[:depth]).reshape(-1)
    each = prod(x.shape[depth:])
    outputs[0].copy_(x)
    rows, others = outputs[0].view(prod(x.shape[:depth]), each), updates.reshape(places.numel(), each)
    if reduction == "none":
        moved(rows).scatter_(0, places[:, None].expand(others.shape), moved(others))
    else:
        rows.scatter_reduce_(0, places[:, None].expand(others.shape), others, REDUCTIONS[reduction])


OP = tensor_op(
    "scatter_nd",
    "y0 = x0 with the slices x2 at the places x1, by `reduction` where slices meet",
    {"reduction": str},
    infer,
    reference,
)
