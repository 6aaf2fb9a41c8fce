"""Matrix product: of the last two axes, the axes before them broadcast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import broadcast
from hjgc.plan_format.sizes import spell


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [..., M, K] (transposed where `transpose_a` says so) times x1 [..., K, N], plus x2 broadcast to the result."""
    del outputs
    a, b, bias = (*inputs, None)[:3]
    if a is None or b is None or len(inputs) > 3 or a.dtype != b.dtype or a.dtype == "bool":
        raise ValueError(f"expected two matrices of one type of numbers, found {a} and {b}")
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ValueError(f"expected two axes at least, found {a} and {b}")
    rows, inner = a.shape[-2:][::-1] if attributes["transpose_a"] else a.shape[-2:]
    depth, columns = b.shape[-2:][::-1] if attributes["transpose_b"] else b.shape[-2:]
    if inner != depth:
        raise ValueError(f"expected as many columns as rows, found {spell(inner)} and {spell(depth)}")
    shape = (*broadcast([a.shape[:-2], b.shape[:-2]]), rows, columns)
    if bias is not None and (bias.dtype != a.dtype or broadcast([shape, bias.shape]) != shape):
        raise ValueError(f"expected a bias that fits the result, found {bias}")
    return (TensorType(a.dtype, shape),)


def reference(
    inputs: Sequence[Any], outputs: Sequence[Any], *, transpose_a: bool, transpose_b: bool, alpha: float, beta: float
) -> None:
    import torch

    bias = inputs[2] if len(inputs) > 2 else None
    a, b = inputs[0], inputs[1]
    a = a.transpose(-1, -2) if transpose_a else a
    b = b.transpose(-1, -2) if transpose_b else b
    product = torch.matmul(a, b)
    product = product if alpha == 1 else product * alpha
    if bias is not None:
        product = product + (bias if beta == 1 else bias * beta)
    outputs[0].copy_(product)


OP = tensor_op(
    "matmul",
    "y0 = alpha * x0 @ x1 + beta * x2",
    {"transpose_a": bool, "transpose_b": bool, "alpha": float, "beta": float},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: (
        2 * prod(outputs[0]) * inputs[0][-2 if attributes["transpose_a"] else -1]
    ),
)
