"""Rotary table: the cosines and sines of this call's positions, shared by all layers."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import PARAMETERS, Op, constant, write


def reference(inverse_frequencies: Any, parameters: Any, cos: Any, sin: Any) -> None:
    """angles = position x frequency, in float32, positions from `start` on (Su et al., 2021)."""
    import torch

    start = parameters.start
    positions = torch.arange(start, start + cos.shape[0], dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies
    torch.cos(angles, out=cos)
    torch.sin(angles, out=sin)


OP = Op(
    name="rotary_table",
    summary="cos, sin of (start + i) * inverse_frequencies",
    roles=(
        constant("inverse_frequencies", "F", "float32"),
        PARAMETERS,
        write("cos", "M F", "float32"),
        write("sin", "M F", "float32"),
    ),
    attributes={},
    reference=reference,
    flops=lambda d: 3 * d["M"] * d["F"],
    bytes_moved=lambda d, item: 4 * (d["F"] + 2 * d["M"] * d["F"]),
)
