"""What is compared: two plans, and which launch of the one is which of the other?

Launches are aligned by the ONNX nodes that they stand for, and by their names where a debug section was stripped or
another exporter named the nodes; never by number, since one more launch would shift all that follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hjgc.plan_format import DebugMap, Plan, PlanFile
from hjgc.plan_format.structs import Phase
from hjgc.tools.explaining.chains import View, view


@dataclass(frozen=True)
class Side:
    """One of the two plans. `constants` is the sha256 of that section."""

    path: Path
    bytes: int
    plan: Plan
    debug: DebugMap | None
    constants: str


@dataclass(frozen=True)
class Change:
    """`field` of `item` was `before` and is `after`; None: not there. `area` is what a rule may name."""

    area: str
    item: str
    field: str
    before: str | int | float | None
    after: str | int | float | None


@dataclass(frozen=True)
class Aligned:
    """The launches of a phase that both plans have: which belong together, and which are in one plan alone."""

    a: View
    b: View
    pairs: tuple[tuple[int, int], ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.a.phase.name


def side(file: PlanFile) -> Side:
    constants = hashlib.sha256(file.section("constants")).hexdigest()
    return Side(file.path, file.path.stat().st_size, file.plan, file.debug(), constants)


def aligned(a: Side, b: Side) -> tuple[Aligned, ...]:
    """Of every phase that both have, in the order of the first."""
    theirs = {phase.name: phase for phase in b.plan.phases}
    return tuple(_align(a, phase, b, theirs[phase.name]) for phase in a.plan.phases if phase.name in theirs)


def _align(a: Side, one: Phase, b: Side, other: Phase) -> Aligned:
    first, second = view(a.plan, one, a.debug), view(b.plan, other, b.debug)
    left, right = list(range(len(one.launches))), list(range(len(other.launches)))
    pairs: list[tuple[int, int]] = []
    for key in (_nodes_and_op, _name_and_op, _nodes, _name):
        found = _matches(first, left, second, right, key)
        pairs += found
        taken, given = {i for i, _ in found}, {j for _, j in found}
        left, right = [i for i in left if i not in taken], [j for j in right if j not in given]
    return Aligned(first, second, tuple(sorted(pairs)), tuple(left), tuple(right))


def _matches(
    a: View, left: Sequence[int], b: View, right: Sequence[int], key: Callable[[View, int], Hashable]
) -> list[tuple[int, int]]:
    """Launches with one key, the first with the first and so on; None is no key."""
    waiting: dict[Hashable, list[int]] = {}
    for j in reversed(right):
        waiting.setdefault(key(b, j), []).append(j)
    waiting.pop(None, None)
    return [(i, waiting[found].pop()) for i in left if waiting.get(found := key(a, i))]


def _nodes(seen: View, number: int) -> Hashable:
    return frozenset(seen.nodes(number)) or None


def _nodes_and_op(seen: View, number: int) -> Hashable:
    nodes = _nodes(seen, number)
    return None if nodes is None else (nodes, seen.phase.launches[number].op)


def _name_and_op(seen: View, number: int) -> Hashable:
    launch = seen.phase.launches[number]
    return launch.name, launch.op


def _name(seen: View, number: int) -> Hashable:
    return seen.phase.launches[number].name
