"""Expand: repeat axes of size 1, and add axes in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import broadcast, one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The shape is what the plan says, if the operand can be broadcast to it."""
    del attributes
    x = one(inputs)
    if len(outputs) != 1:
        raise ValueError(f"expected one result, found {len(outputs)}")
    wanted = outputs[0].shape
    if broadcast([x.shape, wanted]) != wanted:
        raise ValueError(f"expected a shape that {x} can be broadcast to, found {outputs[0]}")
    return (TensorType(x.dtype, wanted),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    outputs[0].copy_(inputs[0].expand(outputs[0].shape))


OP = tensor_op("expand", "y0 = x0 broadcast to the shape of y0", {}, infer, reference)
