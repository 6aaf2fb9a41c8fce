"""Bit cast: the same bits as another type of the same width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The type is what the plan says. Truth is no such type: most bits are neither true nor false."""
    del attributes
    x = one(inputs)
    dtype = outputs[0].dtype if len(outputs) == 1 else x.dtype
    if len(outputs) != 1 or ITEM_BYTES[dtype] != ITEM_BYTES[x.dtype] or (dtype == "bool" and x.dtype != dtype):
        raise ValueError(f"expected one result of a type as wide as {x.dtype}, found {dtype}")
    return (TensorType(dtype, x.shape),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    outputs[0].copy_(inputs[0].contiguous().view(outputs[0].dtype))


OP = tensor_op("bitcast", "y0 = the bits of x0 as the type of y0", {}, infer, reference)
