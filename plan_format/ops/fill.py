"""Fill: one number everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.elementwise import FLOATS, Number, parse
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The shape is what the plan says; the number is spelt with its type, as in an elementwise expression."""
    number = parse(attributes["value"], ())
    if inputs or len(outputs) != 1 or not isinstance(number, Number):
        raise ValueError(f"expected a number, no operand and one result, found {attributes['value']!r}")
    if not fits(number):
        raise ValueError(f"expected a number that {number.dtype} holds, found {number.value}")
    return (TensorType(number.dtype, outputs[0].shape),)


def fits(number: Number) -> bool:
    """Does the type hold it?"""
    if number.dtype in FLOATS:
        return True
    bits = 1 if number.dtype == "bool" else 8 * ITEM_BYTES[number.dtype]
    if number.dtype.startswith("int"):
        return -(1 << bits - 1) <= number.value < 1 << bits - 1
    return 0 <= number.value < 1 << bits


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, value: str) -> None:
    del inputs
    number = parse(value, ())
    assert isinstance(number, Number), "as inferred"
    outputs[0].fill_(number.value)


OP = tensor_op("fill", "y0 = `value` everywhere", {"value": str}, infer, reference)
