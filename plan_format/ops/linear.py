"""Linear: a product with a weight kept as [N, K], with an optional bias and an optional residual added."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, constant, read, write


def multiply(x: Any, weight: Any, bias: Any = None) -> Any:
    """x [M, K] times weight [N, K] transposed, plus bias [N]: [M, N] in x's dtype."""
    import torch.nn.functional as F

    return F.linear(x, weight, bias)


def reference(x: Any, weight: Any, bias: Any, residual: Any, y: Any) -> None:
    import torch

    product = multiply(x, weight, bias)
    if residual is None:
        y.copy_(product)
    else:
        torch.add(product, residual, out=y)


OP = Op(
    name="linear",
    summary="y = x @ weight.T + bias + residual",
    roles=(
        read("x", "M K"),
        constant("weight", "N K"),
        constant("bias", "N", optional=True),
        read("residual", "M N", optional=True),
        write("y", "M N"),
    ),
    attributes={},
    reference=reference,
    flops=lambda d: 2 * d["M"] * d["N"] * d["K"],
    bytes_moved=lambda d, item: (d["N"] * d["K"] + d["M"] * (d["K"] + 2 * d["N"])) * item,
)
