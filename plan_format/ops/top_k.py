"""Top k: the largest or smallest numbers along an axis, in order, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, one
from hjgc.plan_format.sizes import spell


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """As many along the axis as the plan says. Numbers and their indices."""
    x = one(inputs)
    if x.dtype not in (*FLOATS, *SIGNED, "uint8"):
        raise ValueError(f"expected numbers, found {x.dtype}")
    axis = axis_of(attributes["axis"], len(x.shape))
    if len(outputs) != 2 or len(outputs[0].shape) != len(x.shape):
        raise ValueError(f"expected numbers and indices with as many axes as {x}")
    count, whole = outputs[0].shape[axis], x.shape[axis]
    if isinstance(count, int) and (count < 0 or (isinstance(whole, int) and count > whole)):
        raise ValueError(f"expected at most {spell(whole)} numbers, found {count}")
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return TensorType(x.dtype, shape), TensorType("int64", shape)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int, largest: bool) -> None:
    """Of equal ones those in front first. Raises ValueError where there are not as many."""
    import torch

    x, count = inputs[0], outputs[0].shape[axis]
    if count > x.shape[axis]:
        raise ValueError(f"expected at most {x.shape[axis]} numbers, found {count}")
    for found, output in zip(torch.sort(x, dim=axis, descending=largest, stable=True), outputs, strict=True):
        output.copy_(found.narrow(axis, 0, count))


OP = tensor_op(
    "top_k",
    "y0, y1 = the largest or smallest numbers of x0 along `axis`, and their indices",
    {"axis": int, "largest": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]),
)
