"""Which ONNX nodes are matrix products, or determinants?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.plan_format.elementwise import UNSIGNED
from hjgc.plan_format.structs import Attribute


def product(*, a: bool = False, b: bool = False, alpha: float = 1.0, beta: float = 1.0) -> dict[str, Attribute]:
    """The attributes of a `matmul`."""
    return {"transpose_a": a, "transpose_b": b, "alpha": float(alpha), "beta": float(beta)}


@lowers("MatMul")
def _matmul(node: Lowering) -> None:
    a, b = node.x(0), node.x(1)
    if a.dtype in UNSIGNED and a.dtype != "uint8":
        raise node.refuse(f"of {a.dtype}")
    left = node.view(a, (1, *a.shape)) if len(a.shape) == 1 else a
    right = node.view(b, (*b.shape, 1)) if len(b.shape) == 1 else b
    y = node.emit("matmul", [left, right], product())
    shape = list(y.shape)
    if len(b.shape) == 1:
        del shape[-1]
    if len(a.shape) == 1:
        del shape[-1 if len(b.shape) == 1 else -2]
    node.give(node.view(y, shape))


@lowers("Gemm")
def _gemm(node: Lowering) -> None:
    node.give(general_product(node))


def general_product(node: Lowering) -> Tensor:
    """alpha * A @ B + beta * C, as a Gemm says."""
    attributes = product(
        a=bool(node.integer("transA", 0)),
        b=bool(node.integer("transB", 0)),
        alpha=node.number("alpha", 1.0),
        beta=node.number("beta", 1.0),
    )
    return node.emit("matmul", [node.x(0), node.x(1), node.optional(2)], attributes)


@lowers("Det")
def _determinant(node: Lowering) -> None:
    node.give(node.emit("determinant", [node.x(0)]))
