"""Is an expression safe to evaluate anywhere inside the ranges of its sizes?"""

from __future__ import annotations

from collections.abc import Mapping

from hjgc.plan_format import sizes
from hjgc.plan_format.checker import Checker
from hjgc.plan_format.sizes import Expression

Ranges = Mapping[str, tuple[int, int]]


def check_expression(expression: Expression, ranges: Ranges, where: str, check: Checker) -> tuple[int, int]:
    """The bounds of an expression that names declared sizes only, is small, never divides by zero and never leaves 64
    bits."""
    if isinstance(expression, int) and abs(expression) <= sizes.MAX_VALUE:
        return expression, expression
    small = sizes.is_small(expression)
    check.require(small, where, f"up to {sizes.MAX_PARTS} parts, {sizes.MAX_DEPTH} deep", "a larger expression")
    unknown = sizes.names(expression) - ranges.keys()
    check.require(not unknown, where, f"sizes among {sorted(ranges)}", sorted(unknown))
    try:
        return sizes.bounds(expression, ranges)
    except ZeroDivisionError as error:
        check.fail(where, f"expected a divisor over 0, but {error}")
    except OverflowError as error:
        check.fail(where, f"expected no part past {sizes.MAX_VALUE}, but {error}")
