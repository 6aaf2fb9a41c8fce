"""Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019)."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, constant, read, write


def normalise(x: Any, weight: Any, epsilon: float) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * weight, the mean in float32."""
    import torch.nn.functional as F

    if x.dtype == weight.dtype:
        return F.rms_norm(x, (x.shape[-1],), weight, epsilon)
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), epsilon).to(x.dtype)


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
