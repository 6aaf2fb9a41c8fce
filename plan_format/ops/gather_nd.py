"""Gather by places: slices, each by the numbers of several axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import inside, moved, whole_numbers
from hjgc.plan_format.ops.shapes import present


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [batch, axes, rest] at x1 [batch, any, as many as axes]: [batch, any, rest]."""
    del outputs
    types, batch = present(inputs), attributes["batch"]
    if len(types) != 2 or not types[1].shape:
        raise ValueError("expected a tensor and places in it")
    x, indices = types[0], whole_numbers(types[1])
    depth = indices.shape[-1]
    if not isinstance(depth, int) or depth < 1 or not 0 <= batch < len(indices.shape):
        raise ValueError(f"expected places of one axis at least, after {batch} of batches, found {indices}")
    if batch + depth > len(x.shape) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"expected places in {x}, found {indices}")
    return (TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch + depth :])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, batch: int) -> None:
    """Raises IndexError for a place outside."""
    import torch

    x, indices = inputs
    depth = indices.shape[-1]
    axes, rest = x.shape[batch : batch + depth], x.shape[batch + depth :]
    flat = flat_places(indices, axes)
    many = prod(x.shape[:batch])
    offsets = torch.arange(many).reshape(many, 1) * prod(axes)
    places = (flat.reshape(many, prod(indices.shape[batch:-1])) + offsets).reshape(-1)
    rows = moved(x).reshape(many * prod(axes), prod(rest))
    moved(outputs[0]).copy_(rows.index_select(0, places).reshape(outputs[0].shape))


def flat_places(indices: Any, axes: Sequence[int]) -> Any:
    """Places of several axes as numbers of slices. Raises IndexError for one outside."""
    import torch

    total = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for i, count in enumerate(axes):
        total = total * count + inside(indices[..., i], count)
    return total


OP = tensor_op(
    "gather_nd", "y0 = the slices of x0 at the places x1, after `batch` axes", {"batch": int}, infer, reference
)
