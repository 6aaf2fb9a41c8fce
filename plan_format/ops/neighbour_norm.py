"""Neighbour norm: numbers divided by a power of the squares in the channels around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, ...]."""
    del outputs
    x = one(inputs)
    if x.dtype not in FLOATS or len(x.shape) < 2 or attributes["size"] < 1:
        raise ValueError(f"expected channels of a floating-point type and a size over 0, found {x}")
    return (x,)


def reference(
    inputs: Sequence[Any], outputs: Sequence[Any], *, size: int, alpha: float, beta: float, bias: float
) -> None:
    """Computed in float32 at least; of an even size, one channel more lies behind than before."""
    import torch

    x = inputs[0] if inputs[0].dtype == torch.float64 else inputs[0].float()
    rows = x.square().reshape(*x.shape[:2], -1)
    padded = torch.nn.functional.pad(rows, (0, 0, (size - 1) // 2, size // 2))
    total = padded.unfold(1, size, 1).sum(-1).reshape(x.shape)
    outputs[0].copy_(x / (bias + alpha / size * total) ** beta)


OP = tensor_op(
    "neighbour_norm",
    "y0 = x0 / (bias + alpha / size * squares of x0 in `size` channels) ** beta",
    {"size": int, "alpha": float, "beta": float, "bias": float},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]) * (2 * attributes["size"] + 4),
)
