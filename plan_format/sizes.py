"""How does a plan write a number that depends on the request: a shape, a grid, an argument?

A size is declared once with its range and where it lives. An expression over sizes is an integer, a size by name, or
one operation on two expressions; nothing else, so evaluating one can neither loop nor fail inside its range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

Operation = Literal["add", "sub", "mul", "ceil_div", "min", "max"]
MAX_DEPTH = 16
MAX_PARTS = 64
MAX_VALUE = 1 << 62
"""No part of an expression leaves [-MAX_VALUE, MAX_VALUE] inside its range: 64 bits hold every step."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag="size"):
    """A declared size, by name."""

    name: str


class Binary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, tag="binary"):
    """`left operation right`; `ceil_div` is the quotient rounded up."""

    operation: Operation
    left: Expression
    right: Expression


Expression = int | Size | Binary


class SizeDeclaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
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
    """The lowest and highest value over the ranges (interval arithmetic: may be wider than what is met).

    Raises ZeroDivisionError for a divisor that may be under 1, OverflowError for a part that may leave 64 bits."""
    low, high = _bounds(expression, ranges)
    if low < -MAX_VALUE or high > MAX_VALUE:
        raise OverflowError(f"{spell(expression)} may reach {low} to {high}")
    return low, high


def _bounds(expression: Expression, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    if isinstance(expression, int):
        return expression, expression
    if isinstance(expression, Size):
        return ranges[expression.name]
    lefts, rights = bounds(expression.left, ranges), bounds(expression.right, ranges)
    if expression.operation == "ceil_div" and rights[0] < 1:
        raise ZeroDivisionError(f"{spell(expression.right)} may be {rights[0]}")
    # Each operation rises or falls throughout in either operand, so its extremes lie at the corners.
    corners = [apply(expression.operation, left, right) for left in lefts for right in rights]
    return min(corners), max(corners)


def walk(expression: Expression) -> Iterator[tuple[int, Expression]]:
    """Each part with its depth (the whole is at 1), without recursion: safe for an expression of any depth."""
    waiting: list[tuple[int, Expression]] = [(1, expression)]
    while waiting:
        level, part = waiting.pop()
        yield level, part
        if isinstance(part, Binary):
            waiting += ((level + 1, part.right), (level + 1, part.left))


def depth(expression: Expression) -> int:
    return max(level for level, _ in walk(expression))


def is_small(expression: Expression) -> bool:
    """At most MAX_DEPTH deep, of at most MAX_PARTS integers, sizes and operations."""
    return all(i < MAX_PARTS and level <= MAX_DEPTH for i, (level, _) in enumerate(walk(expression)))


def names(expression: Expression) -> frozenset[str]:
    """The sizes an expression depends on."""
    return frozenset(part.name for _, part in walk(expression) if isinstance(part, Size))


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
