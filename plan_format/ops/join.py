"""Join: the parts of a product summed in order, with bias and residual, and the sum normalised for the next product."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, constant, read, write
from hjgc.plan_format.ops.rms_norm import normalise


def reference(parts: Any, bias: Any, residual: Any, norm_weight: Any, y: Any, normal: Any, *, epsilon: float) -> None:
    """`parts` [S, R, N] float32, of which the first M rows count."""
    total = parts[:, : y.shape[0]].sum(0)
    for term in (bias, residual):
        if term is not None:
            total = total + term.float()
    y.copy_(total)
    if normal is not None:
        normal.copy_(normalise(y, norm_weight, epsilon))


OP = Op(
    name="join",
    summary="y = sum(parts) + bias + residual; normal = rms_norm(y)",
    roles=(
        read("parts", "S R N", "float32"),
        constant("bias", "N", optional=True),
        read("residual", "M N", optional=True),
        constant("norm_weight", "N", optional=True),
        write("y", "M N"),
        write("normal", "M N", optional=True),
    ),
    attributes={"epsilon": float},
    reference=reference,
    flops=lambda d: (d["S"] + 4) * d["M"] * d["N"],
    bytes_moved=lambda d, item: (4 * d["S"] + 3 * item) * d["M"] * d["N"],
)
