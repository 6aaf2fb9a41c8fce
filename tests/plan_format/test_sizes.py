"""Do expressions mean what they say, and do their bounds hold?"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from hjgc.plan_format import PlanError
from hjgc.plan_format.checker import Checker
from hjgc.plan_format.expressions import check_expression
from hjgc.plan_format.sizes import MAX_VALUE, Binary, Expression, Operation, Size, bounds, depth, evaluate, names, spell

RANGES = {"tokens": (1, 7), "start": (0, 5)}
OPERATIONS: tuple[Operation, ...] = ("add", "sub", "mul", "ceil_div", "min", "max")
TOKENS = Size("tokens")


def some_expression(r: random.Random, levels: int) -> Expression:
    if levels == 0 or r.random() < 0.2:
        return r.choice((r.randrange(-3, 9), TOKENS, Size("start")))
    return Binary(r.choice(OPERATIONS), some_expression(r, levels - 1), some_expression(r, levels - 1))


@pytest.mark.parametrize("seed", range(300))
def test_every_value_lies_within_the_bounds(seed: int) -> None:
    expression = some_expression(random.Random(seed), 4)
    try:
        low, high = bounds(expression, RANGES)
    except ZeroDivisionError:
        return
    for tokens, start in product(range(1, 8), range(6)):
        assert low <= evaluate(expression, {"tokens": tokens, "start": start}) <= high, spell(expression)


@pytest.mark.parametrize("seed", range(300))
def test_an_expression_with_bounds_never_divides_by_zero(seed: int) -> None:
    r = random.Random(seed)
    expression = Binary("ceil_div", some_expression(r, 2), some_expression(r, 3))
    values = [{"tokens": t, "start": s} for t, s in product(range(1, 8), range(6))]
    try:
        bounds(expression, RANGES)
    except ZeroDivisionError:
        return
    assert len([evaluate(expression, sizes) for sizes in values]) == len(values)


@pytest.mark.parametrize(
    ("expression", "value", "text"),
    [
        (5, 5, "5"),
        (TOKENS, 7, "tokens"),
        (Binary("add", TOKENS, 1), 8, "(tokens + 1)"),
        (Binary("sub", 1, TOKENS), -6, "(1 - tokens)"),
        (Binary("mul", TOKENS, TOKENS), 49, "(tokens * tokens)"),
        (Binary("ceil_div", TOKENS, 4), 2, "ceil_div(tokens, 4)"),
        (Binary("ceil_div", -7, 2), -3, "ceil_div(-7, 2)"),
        (Binary("min", TOKENS, 3), 3, "min(tokens, 3)"),
        (Binary("max", TOKENS, 3), 7, "max(tokens, 3)"),
    ],
)
def test_an_operation_computes_and_reads_as_people_write_it(expression: Expression, value: int, text: str) -> None:
    assert evaluate(expression, {"tokens": 7}) == value
    assert spell(expression) == text


def test_an_exact_bound_is_met() -> None:
    assert bounds(Binary("ceil_div", TOKENS, 2), RANGES) == (1, 4)
    assert bounds(Binary("sub", TOKENS, Size("start")), RANGES) == (-4, 7)


def test_a_divisor_range_with_zero_inside_is_refused_though_its_ends_are_not_zero() -> None:
    divisor = Binary("sub", TOKENS, 3)
    with pytest.raises(ZeroDivisionError, match=r"\(tokens - 3\) may be -2"):
        bounds(Binary("ceil_div", 100, divisor), RANGES)


def test_a_part_past_64_bits_is_refused_though_the_whole_is_small() -> None:
    vast = Binary("mul", TOKENS, MAX_VALUE // 2)
    assert bounds(Binary("mul", 1, MAX_VALUE), RANGES) == (MAX_VALUE, MAX_VALUE)
    with pytest.raises(OverflowError):
        bounds(Binary("min", vast, 1), RANGES)


def chain(levels: int) -> Expression:
    part: Expression = TOKENS
    for _ in range(levels):
        part = Binary("mul", part, 1 << 40)
    return part


def test_depth_and_names_of_any_expression_can_be_asked_for() -> None:
    assert depth(chain(5000)) == 5001
    assert names(chain(5000)) == {"tokens"}
    assert names(Binary("add", TOKENS, Size("start"))) == {"tokens", "start"}


@pytest.mark.parametrize("levels", [16, 100, 5000])
def test_a_deep_expression_is_refused_before_it_is_computed(levels: int) -> None:
    with pytest.raises(PlanError, match=r"here: expected up to 64 parts, 16 deep"):
        check_expression(chain(levels), RANGES, "here", Checker(Path("p.hjg")))


def test_a_size_that_is_not_declared_is_refused() -> None:
    with pytest.raises(PlanError, match=r"here: expected sizes among \['start', 'tokens'\], found \['width'\]"):
        check_expression(Binary("add", Size("width"), 1), RANGES, "here", Checker(Path("p.hjg")))
