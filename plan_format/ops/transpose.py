"""Transpose: axes in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """Axis i of the result is axis `axes[i]` of the operand."""
    del outputs
    x, axes = one(inputs), attributes["axes"]
    if sorted(axes) != list(range(len(x.shape))):
        raise ValueError(f"expected each of {len(x.shape)} axes once, found {axes}")
    return (TensorType(x.dtype, tuple(x.shape[axis] for axis in axes)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axes: tuple[int, ...]) -> None:
    outputs[0].copy_(inputs[0].permute(axes))


OP = tensor_op("transpose", "y0 = x0 with its axes in the order `axes`", {"axes": tuple}, infer, reference)
