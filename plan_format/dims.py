"""How are sizes computed with, so that equal sizes are written equally: `2 * (n + 1)` and `n + n + 2`?

A size is held as a sum of products of names with whole factors. What is no sum of products (a quotient rounded up, a
minimum) is a name of its own, that of its canonical spelling.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce

from hjgc.plan_format.sizes import Binary, Expression, Operation, Size, apply, spell

Monomial = tuple[str, ...]
Sum = dict[Monomial, int]


def canonical(expression: Expression) -> Expression:
    """The one spelling of a size: terms in order, factors first, whole numbers last."""
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
    return {term: count for term, count in total.items() if count}


def _multiplied(left: Sum, right: Sum) -> Sum:
    total: Sum = {}
    for one, count in left.items():
        for other, times in right.items():
            term = tuple(sorted((*one, *other)))
            total[term] = total.get(term, 0) + count * times
    return {term: count for term, count in total.items() if count}


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
    total: Expression | None = None
    for term in sorted(terms, key=lambda term: (-len(term), term)):
        count = terms[term]
        part = _term(term, abs(count), atoms)
        if total is None:
            total = part if count > 0 else Binary("mul", -1, part) if not isinstance(part, int) else -part
        else:
            total = Binary("add" if count > 0 else "sub", total, part)
    return 0 if total is None else total


def _term(term: Monomial, count: int, atoms: dict[str, Expression]) -> Expression:
    factors: list[Expression] = [atoms[name] for name in term]
    if count != 1 or not factors:
        factors.insert(0, count)
    whole = factors[0]
    for factor in factors[1:]:
        whole = Binary("mul", whole, factor)
    return whole
