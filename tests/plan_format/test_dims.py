"""Are sizes computed with as numbers are, and are equal ones written equally?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import product

import pytest

from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Binary, Expression, Operation, Size, depth, evaluate, spell

N, M = Size("n"), Size("m")
SMALL: tuple[Mapping[str, int], ...] = tuple({"n": n, "m": m} for n, m in product(range(1, 8), range(1, 6)))
OPERATIONS: tuple[Operation, ...] = ("add", "sub", "mul", "min", "max")


def some(r: random.Random, levels: int) -> Expression:
    if levels == 0 or r.random() < 0.2:
        return r.choice((N, M, 0, 1, 2, 3, -1))
    if r.random() < 0.15:
        return Binary("ceil_div", some(r, levels - 1), r.choice((1, 2, 3, 4)))
    return Binary(r.choice(OPERATIONS), some(r, levels - 1), some(r, levels - 1))


def many(count: int) -> Iterator[Expression]:
    r = random.Random(7)
    return (some(r, 4) for _ in range(count))


def values(expression: Expression) -> list[int]:
    return [evaluate(expression, sizes) for sizes in SMALL]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (dims.mul(2, dims.add(N, 1)), "((2 * n) + 2)"),
        (dims.add(dims.add(N, N), 2), "((2 * n) + 2)"),
        (dims.sub(N, N), "0"),
        (dims.sub(0, N), "(-1 * n)"),
        (dims.sub(1, dims.mul(N, M)), "((-1 * (m * n)) + 1)"),
        (dims.mul(N, M), "(m * n)"),
        (dims.mul(dims.add(N, M), dims.sub(N, M)), "((-1 * (m * m)) + (n * n))"),
        (dims.mul(N, 0), "0"),
        (dims.product([N, 4, M, 1]), "((4 * m) * n)"),
        (dims.product([]), "1"),
        (dims.ceil_div(dims.add(N, N), 3), "ceil_div((2 * n), 3)"),
        (dims.add(dims.ceil_div(N, 2), dims.ceil_div(N, 2)), "(2 * ceil_div(n, 2))"),
        (dims.ceil_div(7, 2), "4"),
        (dims.canonical(Binary("max", Binary("add", N, 0), 1)), "max(n, 1)"),
        (dims.canonical(Binary("min", 3, 2)), "2"),
        (dims.floor_div(dims.mul(6, N), 3), "(2 * n)"),
        (dims.floor_div(N, 2), "ceil_div((n - 1), 2)"),
    ],
)
def test_there_is_one_spelling(expression: Expression, text: str) -> None:
    assert spell(expression) == text


def test_the_canonical_form_has_the_same_value_and_is_its_own() -> None:
    for expression in many(500):
        found = dims.canonical(expression)
        assert values(found) == values(expression), spell(expression)
        assert dims.canonical(found) == found, spell(expression)


def test_what_is_computed_has_the_value_that_numbers_have() -> None:
    pairs = list(many(400))
    for left, right in zip(pairs[::2], pairs[1::2], strict=True):
        assert values(dims.add(left, right)) == [a + b for a, b in zip(values(left), values(right), strict=True)]
        assert values(dims.sub(left, right)) == [a - b for a, b in zip(values(left), values(right), strict=True)]
        assert values(dims.mul(left, right)) == [a * b for a, b in zip(values(left), values(right), strict=True)]


def test_a_quotient_is_certain_or_none() -> None:
    """Where there is one, it is the quotient at every size."""
    found = 0
    pairs = list(many(1000))
    for left, right in zip(pairs[::2], pairs[1::2], strict=True):
        whole = dims.divide(left, right)
        if whole is not None:
            found += 1
            for part, above, below in zip(values(whole), values(left), values(right), strict=True):
                assert below == 0 or part * below == above, (spell(left), spell(right))
    assert found > 50


@pytest.mark.parametrize(
    ("left", "right", "quotient"),
    [
        (dims.mul(6, N), 3, "(2 * n)"),
        (dims.mul(6, N), 4, None),
        (dims.mul(dims.mul(6, N), M), dims.mul(2, N), "(3 * m)"),
        (dims.add(dims.mul(N, M), M), M, "(n + 1)"),
        (dims.add(N, M), dims.add(M, N), "1"),
        (dims.add(N, M), dims.sub(N, M), None),
        (N, M, None),
        (0, N, "0"),
        (N, 0, None),
        (0, 0, None),
        (6, 3, "2"),
        (7, 3, None),
        (-6, 3, "-2"),
    ],
)
def test_what_divides_what(left: Expression, right: Expression, quotient: str | None) -> None:
    found = dims.divide(left, right)
    assert (None if found is None else spell(found)) == quotient


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, M])
def test_rounding_down_is_that_of_numbers(divisor: Expression) -> None:
    for expression in many(200):
        found = dims.floor_div(expression, divisor)
        wanted = [a // b for a, b in zip(values(expression), values(divisor), strict=True)]
        assert values(found) == wanted, (spell(expression), spell(divisor))


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, M])
def test_rounding_up_is_that_of_numbers(divisor: Expression) -> None:
    for expression in many(200):
        wanted = [-(-a // b) for a, b in zip(values(expression), values(divisor), strict=True)]
        assert values(dims.ceil_div(expression, divisor)) == wanted, (spell(expression), spell(divisor))


def sum_of(count: int, sign: int = 1) -> Expression:
    total: Expression = 1
    for i in range(count):
        total = dims.add(total, Size(f"n{i}")) if i % 2 or sign > 0 else dims.sub(total, Size(f"n{i}"))
    return total


@pytest.mark.parametrize("sign", [1, -1])
def test_a_long_sum_or_product_is_written_without_depth(sign: int) -> None:
    whole = sum_of(200, sign)
    assert depth(whole) <= 11
    assert depth(dims.product([Size(f"n{i}") for i in range(200)])) <= 9
    sizes = {f"n{i}": i * i for i in range(200)}
    assert evaluate(whole, sizes) == 1 + sum(i * i if i % 2 or sign > 0 else -i * i for i in range(200))
    assert dims.canonical(whole) == whole


def test_sums_of_more_terms_than_anybody_needs_are_refused() -> None:
    sum_of(dims.MAX_TERMS - 1)
    dims.mul(sum_of(15), dims.product([N, M]))
    for large in (lambda: sum_of(dims.MAX_TERMS), lambda: dims.mul(sum_of(30), sum_of(30))):
        with pytest.raises(ValueError, match="at most 256 products"):
            large()
