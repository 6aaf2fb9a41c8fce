"""Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019)."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, constant, read, write


def normalise(x: Any, weight: Any, epsilon: float) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight in float32, given in x's dtype."""
    wide = x.float()
    if x.numel() == x.shape[-1]:  # one row: fewer, smaller calls, which is what a decode step is made of
        row = wide.view(-1)
        scale = (float(row.dot(row)) / x.shape[-1] + epsilon) ** -0.5
    else:
        scale = (wide * wide).sum(-1, keepdim=True).mul_(1.0 / x.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype)


def reference(x: Any, weight: Any, y: Any, *, epsilon: float) -> None:
    y.copy_(normalise(x, weight, epsilon))


OP = Op(
    name="rms_norm",
    summary="y = x / sqrt(mean(x^2) + epsilon) * weight",
    roles=(read("x", "M H"), constant("weight", "H"), write("y", "M H")),
    attributes={"epsilon": float},
    reference=reference,
    flops=lambda d: 4 * d["M"] * d["H"],
    bytes_moved=lambda d, item: (2 * d["M"] + 1) * d["H"] * item,
)
