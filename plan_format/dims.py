"""How are sizes computed with, so that equal sizes are written equally: `2 * (n + 1)` and `n + n + 2`?

A size is held as a sum of products of names with whole factors. What is no sum of products (a quotient rounded up, a
minimum) is a name of its own, that of its canonical spelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce

from hjgc.plan_format.sizes import Binary, Expression, Operation, Size, apply, spell

Monomial = tuple[str, ...]
Sum = dict[Monomial, int]

MAX_TERMS = 256
"""Of a sum: a product of short sums may have any number, and a plan could keep its reader busy for hours."""


def canonical(expression: Expression) -> Expression:
    """The one spelling of a size: terms in order, factors first, whole numbers last. Raises ValueError, as all here
    do, past MAX_TERMS terms."""
    return expression if isinstance(expression, int | Size) else _canonical(expression)


@lru_cache(4096)
def _canonical(expression: Expression) -> Expression:
    atoms: dict[str, Expression] = {}
    return _written(_sum(expression, atoms), atoms)


def add(left: Expression, right: Expression) -> Expression:
    return _combine("add", left, right)


def sub(left: Expression, right: Expression) -> Expression:
    return _combine("sub", left, right)


def mul(left: Expression, right: Expression) -> Expression:
    return _combine("mul", left, right)


def product(axes: Iterable[Expression]) -> Expression:
    return reduce(mul, axes, 1)


def ceil_div(left: Expression, right: Expression) -> Expression:
    return _combine("ceil_div", left, right)


def floor_div(left: Expression, right: Expression) -> Expression:
    """The quotient rounded down, for a divisor over 0."""
    exact = divide(left, right)
    return exact if exact is not None else ceil_div(add(sub(left, right), 1), right)


def divide(left: Expression, right: Expression) -> Expression | None:
    """The quotient if there is nothing left over whatever the sizes are; None where that is not certain."""
    atoms: dict[str, Expression] = {}
    above, below = _sum(left, atoms), _sum(right, atoms)
    if len(below) != 1:
        return 1 if above == below and below else None
    ((names, factor),) = below.items()
    found: Sum = {}
    for term, count in above.items():
        rest = list(term)
        for name in names:
            if name not in rest:
                return None
            rest.remove(name)
        if factor == 0 or count % factor:
            return None
        found[tuple(rest)] = count // factor
    return _written(found, atoms)


def _combine(operation: Operation, left: Expression, right: Expression) -> Expression:
    if isinstance(left, int) and isinstance(right, int):
        return apply(operation, left, right)
    return canonical(Binary(operation, left, right))


def _sum(expression: Expression, atoms: dict[str, Expression]) -> Sum:
    if isinstance(expression, int):
        return {(): expression} if expression else {}
    if isinstance(expression, Size):
        atoms[expression.name] = expression
        return {(expression.name,): 1}
    left, right = _sum(expression.left, atoms), _sum(expression.right, atoms)
    match expression.operation:
        case "add":
            return _added(left, right, 1)
        case "sub":
            return _added(left, right, -1)
        case "mul":
            return _multiplied(left, right)
        case _:
            return _atom(expression.operation, _written(left, atoms), _written(right, atoms), atoms)


def _added(left: Sum, right: Sum, sign: int) -> Sum:
    total = dict(left)
    for term, count in right.items():
        total[term] = total.get(term, 0) + sign * count
    return _bounded({term: count for term, count in total.items() if count})


def _multiplied(left: Sum, right: Sum) -> Sum:
    total: Sum = {}
    for one, count in left.items():
        for other, times in right.items():
            term = tuple(sorted((*one, *other)))
            total[term] = total.get(term, 0) + count * times
        _bounded(total)
    return {term: count for term, count in total.items() if count}


def _bounded(total: Sum) -> Sum:
    if len(total) > MAX_TERMS:
        raise ValueError(f"expected a size that is a sum of at most {MAX_TERMS} products, found more")
    return total


def _atom(operation: Operation, left: Expression, right: Expression, atoms: dict[str, Expression]) -> Sum:
    if isinstance(left, int) and isinstance(right, int) and (operation != "ceil_div" or right):
        value = apply(operation, left, right)
        return {(): value} if value else {}
    exact = divide(left, right) if operation == "ceil_div" else None
    if exact is not None:
        return _sum(exact, atoms)
    whole = Binary(operation, left, right)
    atoms[spell(whole)] = whole
    return {(spell(whole),): 1}


def _written(terms: Sum, atoms: dict[str, Expression]) -> Expression:
    """Terms by name, those of fewest factors last."""
    order = sorted(terms, key=lambda term: (-len(term), term))
    parts = [(terms[term], _term(term, abs(terms[term]), atoms)) for term in order]
    if not parts:
        return 0
    count, first = parts[0]
    if count < 0:
        parts[0] = (1, -first if isinstance(first, int) else Binary("mul", -1, first))
    return _total(parts)


def _total(parts: Sequence[tuple[int, Expression]]) -> Expression:
    """Halves added up, so that no sum is deep; of a number only the sign counts, and the first is not under 0."""
    if len(parts) == 1:
        return parts[0][1]
    half = (len(parts) + 1) // 2
    sign = 1 if parts[half][0] > 0 else -1
    rest = _total([(sign * count, part) for count, part in parts[half:]])
    return Binary("add" if sign > 0 else "sub", _total(parts[:half]), rest)


def _term(term: Monomial, count: int, atoms: dict[str, Expression]) -> Expression:
    factors: list[Expression] = [atoms[name] for name in term]
    if count != 1 or not factors:
        factors.insert(0, count)
    return _whole(factors)


def _whole(factors: Sequence[Expression]) -> Expression:
    """Halves multiplied, so that no product is deep."""
    if len(factors) == 1:
        return factors[0]
    half = (len(factors) + 1) // 2
    return Binary("mul", _whole(factors[:half]), _whole(factors[half:]))
