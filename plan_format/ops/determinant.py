"""Determinant: that of square matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [..., M, M]: the last two axes go."""
    del outputs, attributes
    x = one(inputs)
    if x.dtype not in ("float32", "float64") or len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"expected square matrices of float32 or float64, found {x}")
    return (TensorType(x.dtype, x.shape[:-2]),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    import torch

    outputs[0].copy_(torch.linalg.det(inputs[0]))


OP = tensor_op(
    "determinant",
    "y0 = det(x0)",
    {},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]) * inputs[0][-1],
)
