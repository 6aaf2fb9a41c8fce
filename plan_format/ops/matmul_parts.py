"""Matrix product whose sums are cut into parts, for kernels that share them out; `norm_map` adds the parts up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops import matmul
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op

PLAIN = {"transpose_a": False, "alpha": 1.0, "beta": 1.0}
MOST_PARTS = 64


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [..., M, K] and x1 as `matmul` has them; the result is [parts, ..., M, N] in float32."""
    if len(inputs) != 2 or not 1 <= attributes["parts"] <= MOST_PARTS:
        raise ValueError(f"expected two matrices and 1 to {MOST_PARTS} parts, found {len(inputs)} operands")
    product = matmul.infer(inputs, outputs, {**attributes, **PLAIN})[0]
    return (TensorType("float32", (attributes["parts"], *product.shape)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, transpose_b: bool, parts: int) -> None:
    """What each part holds is a kernel's own affair: only their sum has a meaning, and here the first is all of it."""
    import torch

    del parts
    a, b = inputs
    outputs[0].zero_()
    outputs[0][0] = torch.matmul(a.float(), (b.transpose(-1, -2) if transpose_b else b).float())


OP = tensor_op(
    "matmul_parts",
    "sum(y0 over its first axis) = x0 @ x1",
    {"transpose_b": bool, "parts": int},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 2 * prod(outputs[0][1:]) * inputs[0][-1],
)
