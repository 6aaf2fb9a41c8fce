"""Matrix product, and what an expression makes of each of its elements before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import MAX_OPERANDS, parse, type_of
from hjgc.plan_format.ops import elementwise, matmul
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import broadcast

PLAIN = {"alpha": 1.0, "beta": 1.0}


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 and x1 as `matmul` has them. In the expression x0 is their product, and x2, x3, ... are operands broadcast to
    it; x1 does not occur."""
    product = matmul.infer(inputs[:2], outputs, {**attributes, **PLAIN})[0]
    others = [x for x in inputs[2:] if x is not None]
    if len(others) != len(inputs) - 2 or len(inputs) > MAX_OPERANDS:
        raise ValueError(f"expected two matrices and up to {MAX_OPERANDS - 2} operands, found {len(inputs)}")
    if broadcast([product.shape, *(x.shape for x in others)]) != product.shape:
        raise ValueError(f"expected operands that fit {product}, found {', '.join(map(str, others))}")
    types: tuple[DType, ...] = (product.dtype, product.dtype, *(x.dtype for x in others))
    return (TensorType(type_of(parse(attributes["expression"], types), types), product.shape),)


def reference(
    inputs: Sequence[Any], outputs: Sequence[Any], *, transpose_a: bool, transpose_b: bool, expression: str
) -> None:
    import torch

    a, b = inputs[0], inputs[1]
    product = torch.matmul(a.transpose(-1, -2) if transpose_a else a, b.transpose(-1, -2) if transpose_b else b)
    elementwise.reference([product, product, *inputs[2:]], outputs, expression=expression)


OP = tensor_op(
    "matmul_map",
    "y0 = expression(x0 @ x1, x2, x3, ...), element by element",
    {"transpose_a": bool, "transpose_b": bool, "expression": str},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: (
        2 * prod(outputs[0]) * inputs[0][-2 if attributes["transpose_a"] else -1]
        + prod(outputs[0]) * attributes["expression"].count("(")
    ),
)
