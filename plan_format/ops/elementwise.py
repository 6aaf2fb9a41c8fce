"""Elementwise: each element of the result from those at the same place, by a small typed expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import MAX_OPERANDS, Call, Node, Number, Operand, parse, type_of
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import broadcast, present

WIDE = {"uint16": "int64", "uint32": "int64"}
"""What torch hardly computes in, and a type that holds all of it."""


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """One result, in the shape that the operands are broadcast to."""
    del outputs
    types = present(inputs)
    if len(types) > MAX_OPERANDS:
        raise ValueError(f"expected at most {MAX_OPERANDS} operands, found {len(types)}")
    dtypes: tuple[DType, ...] = tuple(x.dtype for x in types)
    return (TensorType(type_of(parse(attributes["expression"], dtypes), dtypes), broadcast([x.shape for x in types])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, expression: str) -> None:
    dtypes = tuple(str(x.dtype).removeprefix("torch.") for x in inputs)
    node = parse(expression, dtypes)  # type: ignore[arg-type] (torch's names are ours)
    outputs[0].copy_(_Evaluation(inputs)(node))


class _Evaluation:
    """The value of a node in torch. Unsigned types that torch does not compute in are computed in a wider one, and cut
    to their own at every step."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        import torch

        self.torch, self.inputs = torch, inputs

    def __call__(self, node: Node) -> Any:
        if isinstance(node, Operand):
            return self._widened(self.inputs[node.index])
        if isinstance(node, Number):
            return self.torch.tensor(node.value, dtype=getattr(self.torch, WIDE.get(node.dtype, node.dtype)))
        return self._call(node)

    def _widened(self, x: Any) -> Any:
        wide = WIDE.get(str(x.dtype).removeprefix("torch."))
        return x if wide is None else x.to(getattr(self.torch, wide))

    def _call(self, node: Call) -> Any:
        arguments = [self(argument) for argument in node.arguments]
        if node.function.startswith("cast."):
            return self._cut(_cast(self.torch, arguments[0], WIDE.get(node.dtype, node.dtype)), node.dtype)
        if node.function == "where":
            return self.torch.where(*arguments)
        return self._cut(_compute(self.torch, node.function, arguments), node.dtype)

    def _cut(self, x: Any, dtype: str) -> Any:
        """What the type itself would hold."""
        return x & ((1 << int(dtype[4:])) - 1) if dtype in WIDE else x


def _cast(torch: Any, x: Any, dtype: str) -> Any:
    return x.to(getattr(torch, dtype))


def _compute(torch: Any, function: str, arguments: Sequence[Any]) -> Any:
    a, b = arguments[0], arguments[-1]
    floating = a.dtype.is_floating_point
    match function:
        case "round":
            return torch.round(a)
        case "softplus":
            return torch.logaddexp(a, torch.zeros_like(a))  # max(a, 0) + log(1 + exp(-|a|)): no overflow
        case "not":
            return ~a
        case "bitnot":
            return torch.bitwise_not(a)
        case "div":
            return a / b if floating else torch.div(a, b, rounding_mode="trunc")
        case "mod":
            return torch.remainder(a, b)
        case "min" | "max":
            return torch.minimum(a, b) if function == "min" else torch.maximum(a, b)
        case "and" | "or" | "xor":
            return getattr(torch, f"logical_{function}")(a, b)
        case "bitand" | "bitor" | "bitxor":
            return getattr(torch, f"bitwise_{function[3:]}")(a, b)
        case "shl" | "shr":
            return torch.bitwise_left_shift(a, b) if function == "shl" else torch.bitwise_right_shift(a, b)
        case "sign":
            return torch.where(torch.isnan(a), a, torch.sign(a)) if floating else torch.sign(a)
        case _:
            return getattr(torch, function)(*arguments)


OP = tensor_op(
    "elementwise",
    "y0 = expression(x0, x1, ...), element by element, operands broadcast",
    {"expression": str},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(outputs[0]) * attributes["expression"].count("("),
)
