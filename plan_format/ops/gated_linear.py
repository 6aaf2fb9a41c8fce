"""Gated linear: normalise, project to gate and up, and multiply the activated gate with up (Shazeer, 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjgc.plan_format.ops.declaration import Dims, Op, constant, read, write
from hjgc.plan_format.ops.linear import multiply
from hjgc.plan_format.ops.rms_norm import normalise


def reference(x: Any, norm_weight: Any, weight: Any, bias: Any, y: Any, *, epsilon: float) -> None:
    """`weight` [2F, H]: the gate's rows, then up's. Where there is no `norm_weight`, x is normalised already."""
    import torch
    import torch.nn.functional as F

    normal = x if norm_weight is None else normalise(x, norm_weight, epsilon)
    gate, up = multiply(normal, weight, bias).chunk(2, 1)
    torch.mul(F.silu(gate), up, out=y)


def relations(dims: Dims, attributes: Mapping[str, Any]) -> str | None:
    del attributes
    return None if dims["N"] == 2 * dims["F"] else f"expected weight rows twice the output columns, found {dims['N']}"


OP = Op(
    name="gated_linear",
    summary="y = silu(gate) * up, where gate, up = rms_norm(x) @ weight.T + bias",
    roles=(
        read("x", "M H"),
        constant("norm_weight", "H", optional=True),
        constant("weight", "N H"),
        constant("bias", "N", optional=True),
        write("y", "M F"),
    ),
    attributes={"epsilon": float},
    reference=reference,
    flops=lambda d: 2 * d["M"] * d["N"] * d["H"],
    bytes_moved=lambda d, item: (d["N"] * d["H"] + d["M"] * (d["H"] + d["F"])) * item,
    relations=relations,
)
