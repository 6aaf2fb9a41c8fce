"""Layer norm of what an expression makes of its operands, and, where it is asked for, that itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import MAX_OPERANDS, parse, type_of
from hjgc.plan_format.ops import elementwise, layer_norm
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import broadcast

LAST = {"axis": -1}


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """x0 is the gain and x1 the bias, if there are any; x2, x3, ... are those of the expression. With `parts`, x2 is
    [P, ...] in float32 and stands for the sum over its first axis, rounded to the type of the norm. y0 is the norm of
    the expression along its last axis, y1 the expression."""
    if len(inputs) < 3 or any(x is None for x in inputs[2:]) or len(inputs) > MAX_OPERANDS:
        raise ValueError(f"expected a gain, a bias and up to {MAX_OPERANDS - 2} operands, found {len(inputs)}")
    types = [x for x in inputs[2:] if x is not None]
    dtype = attributes["dtype"]
    if attributes["parts"]:
        types[0] = _summed(types[0], dtype)
    dtypes: tuple[DType, ...] = (dtype, dtype, *(x.dtype for x in types))
    found = TensorType(type_of(parse(attributes["expression"], dtypes), dtypes), broadcast([x.shape for x in types]))
    if found.dtype != dtype:
        raise ValueError(f"expected an expression of {dtype}, found {found}")
    layer_norm.infer((found, *inputs[:2]), outputs[:1], {**attributes, **LAST})
    return (found, found)[: max(1, len(outputs))]


def _summed(parts: TensorType, dtype: DType) -> TensorType:
    if parts.dtype != "float32" or len(parts.shape) < 2:
        raise ValueError(f"expected parts in float32, found {parts}")
    return TensorType(dtype, parts.shape[1:])


def reference(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    expression: str,
    dtype: str,
    parts: bool,
    epsilon: float,
    center: bool,
) -> None:
    import torch

    gain, bias, *others = inputs
    if parts:
        others[0] = others[0].sum(dim=0).to(getattr(torch, dtype))
    value = torch.empty_like(outputs[0])
    elementwise.reference([others[0], others[0], *others], [value], expression=expression)
    layer_norm.reference([value, gain, bias], outputs[:1], axis=-1, epsilon=epsilon, center=center)
    for output in outputs[1:]:
        output.copy_(value)


OP = tensor_op(
    "norm_map",
    "y1 = expression(x2, x3, ...), y0 = norm(y1 along its last axis) * x0 + x1",
    {"expression": str, "dtype": str, "parts": bool, "epsilon": float, "center": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(outputs[0]) * (8 + attributes["expression"].count("(")),
)
