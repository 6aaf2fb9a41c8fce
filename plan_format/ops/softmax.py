"""Softmax: along one axis, numbers that add up to one."""

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


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int, log: bool) -> None:
    import torch

    function = torch.log_softmax if log else torch.softmax
    outputs[0].copy_(function(inputs[0], dim=axis))


OP = tensor_op(
    "softmax",
    "y0 = softmax(x0) along `axis`, or its logarithm",
    {"axis": int, "log": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 5 * prod(inputs[0]),
)
