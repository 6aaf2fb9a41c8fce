"""How does a plan write a number that depends on the request: a shape, a grid, an argument?

A size is declared once with its range and where it lives. An expression over sizes is an integer, a size by name, or
one operation on two expressions; nothing else, so evaluating one can neither loop nor fail inside its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Union

import msgspec

Operation = Literal["add", "sub", "mul", "ceil_div", "min", "max"]
MAX_DEPTH = 16


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="size"):
    """A declared size, by name."""

    name: str


class Binary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="binary"):
    """`left operation right`; `ceil_div` is the quotient rounded up."""

    operation: Operation
    left: Union[int, Size, Binary]
    right: Union[int, Size, Binary]


Expression = Union[int, Size, Binary]


class SizeDeclaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size with its inclusive range. `key`: known on the host and part of the capture key. `device`: read by
    kernels from the parameter block, so a captured graph serves every value of it."""

    name: str
    low: int
    high: int
    lives: Literal["key", "device"]


def evaluate(expression: Expression, sizes: Mapping[str, int]) -> int:
    """The value under `sizes`. Raises KeyError for a size that is not given."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, Size):
        return sizes[expression.name]
    return apply(expression.operation, evaluate(expression.left, sizes), evaluate(expression.right, sizes))


def apply(operation: Operation, left: int, right: int) -> int:
    """One operation on two integers. Raises ZeroDivisionError for `ceil_div` by zero."""
    match operation:
        case "add":
            return left + right
        case "sub":
            return left - right
        case "mul":
            return left * right
        case "ceil_div":
            return -(-left // right)
        case "min":
            return min(left, right)
        case "max":
            return max(left, right)


def bounds(expression: Expression, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """The lowest and highest value over the ranges (interval arithmetic: may be wider than what is met)."""
    if isinstance(expression, int):
        return expression, expression
    if isinstance(expression, Size):
        return ranges[expression.name]
    low_left, high_left = bounds(expression.left, ranges)
    low_right, high_right = bounds(expression.right, ranges)
    corners = [
        apply(expression.operation, left, right) for left in (low_left, high_left) for right in (low_right, high_right)
    ]
    return min(corners), max(corners)


def depth(expression: Expression) -> int:
    if not isinstance(expression, Binary):
        return 1
    return 1 + max(depth(expression.left), depth(expression.right))


def names(expression: Expression) -> frozenset[str]:
    """The sizes an expression depends on."""
    if isinstance(expression, int):
        return frozenset()
    if isinstance(expression, Size):
        return frozenset((expression.name,))
    return names(expression.left) | names(expression.right)


def spell(expression: Expression) -> str:
    """The expression as people write it: `ceil_div(tokens, 16)`, `tokens + 1`."""
    if isinstance(expression, int):
        return str(expression)
    if isinstance(expression, Size):
        return expression.name
    left, right = spell(expression.left), spell(expression.right)
    signs = {"add": "+", "sub": "-", "mul": "*"}
    if expression.operation in signs:
        return f"({left} {signs[expression.operation]} {right})"
    return f"{expression.operation}({left}, {right})"
