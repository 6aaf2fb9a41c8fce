"""Linear parts: a product whose sum is cut into parts, for kernels that share it out; `join` adds them up."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, constant, read, write
from hjgc.plan_format.ops.linear import multiply


def reference(x: Any, weight: Any, parts: Any) -> None:
    """`parts` [S, R, N] float32, of which the first M rows count. What each holds is a kernel's own affair: only
    their sum has a meaning, and here the first is all of it."""
    parts[:, : x.shape[0]] = 0
    parts[0, : x.shape[0]] = multiply(x, weight)


OP = Op(
    name="linear_parts",
    summary="sum(parts) = x @ weight.T",
    roles=(read("x", "M K"), constant("weight", "N K"), write("parts", "S R N", "float32")),
    attributes={},
    reference=reference,
    flops=lambda d: 2 * d["M"] * d["N"] * d["K"],
    bytes_moved=lambda d, item: (d["N"] + d["M"]) * d["K"] * item + 4 * d["S"] * d["M"] * d["N"],
)
