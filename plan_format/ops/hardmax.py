"""Hardmax: along an axis 1 for the first of the largest numbers, 0 for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    del outputs
    x = one(inputs)
    if x.dtype not in FLOATS:
        raise ValueError(f"expected a floating-point type, found {x.dtype}")
    axis_of(attributes["axis"], len(x.shape))
    return (x,)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int) -> None:
    import torch

    x, y = inputs[0], outputs[0]
    y.zero_()
    if x.numel():
        y.scatter_(axis, torch.argmax(x, dim=axis, keepdim=True), 1)


OP = tensor_op(
    "hardmax",
    "y0 = 1 where x0 is largest along `axis`, else 0",
    {"axis": int},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]),
)
