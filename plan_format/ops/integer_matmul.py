"""Integer product: matrices of bytes, less their zero points, multiplied exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import broadcast, operands
from hjgc.plan_format.sizes import spell

EXACT_TERMS = 256
"""Of at most 255 * 255 each: less than 2^24 together."""


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [..., M, K] times x1 [..., K, N]; x2 and x3, if they are there, have their types and are broadcast to them."""
    del outputs, attributes
    a, b, *zeros = (*inputs, None, None, None, None)[:4]
    if a is None or b is None or len(inputs) > 4 or {a.dtype, b.dtype} - {"int8", "uint8"}:
        raise ValueError(f"expected two matrices of bytes, found {a} and {b}")
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"expected as many columns as rows, found {a} and {b}")
    for whole, zero in zip((a, b), zeros, strict=True):
        if zero is not None and (zero.dtype != whole.dtype or broadcast([whole.shape, zero.shape]) != whole.shape):
            raise ValueError(f"expected zero points that fit {whole}, found {zero}")
    if isinstance(a.shape[-1], int) and a.shape[-1] > 1 << 15:
        raise ValueError(f"expected sums that int32 holds, found {spell(a.shape[-1])} terms")
    return (TensorType("int32", (*broadcast([a.shape[:-2], b.shape[:-2]]), a.shape[-2], b.shape[-1])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """In float32, which torch multiplies fast, so few terms at a time that every sum is exact."""
    import torch

    a, b, *zeros = operands(inputs, 4)
    a, b = (x.float() if zero is None else x.float() - zero for x, zero in zip((a, b), zeros, strict=True))
    y = outputs[0].zero_()
    for first in range(0, a.shape[-1], EXACT_TERMS):
        terms = slice(first, first + EXACT_TERMS)
        y += torch.matmul(a[..., terms], b[..., terms, :]).int()


OP = tensor_op(
    "integer_matmul",
    "y0 = (x0 - x2) @ (x1 - x3)",
    {},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 2 * prod(outputs[0]) * inputs[0][-1],
)
