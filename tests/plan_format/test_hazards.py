"""Are launches that touch the same memory found, and is a path of edges between them enough?"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from hjgc.plan_format.hazards import Owners, direct_conflicts, memory_uses, schedule_edges, unordered_conflict
from hjgc.plan_format.structs import Buffer, Edge, Launch, Operand, Phase, ReferenceCall
from tests.plans import small_plan

replace = msgspec.structs.replace


def phase(uses: Sequence[str], places: Sequence[tuple[int, int]], edges: Sequence[tuple[int, int]] = ()) -> Phase:
    """Launch i reads the buffers whose small letters `uses[i]` has, and writes those with capitals."""
    launches = tuple(Launch(str(i), "x", tuple(_operand(sign) for sign in text), {}) for i, text in enumerate(uses))
    buffers = tuple(Buffer(f"{i}", "uint8", (size,), offset, size, 0, 0) for i, (offset, size) in enumerate(places))
    return replace(
        small_plan().phases[1], launches=launches, buffers=buffers, edges=tuple(Edge(a, b) for a, b in edges)
    )


def _operand(sign: str) -> Operand:
    return Operand("r", "buffer", ord(sign.lower()) - ord("a"), "write" if sign.isupper() else "read")


APART = [(0, 256), (256, 256), (512, 256)]


@pytest.mark.parametrize(
    ("uses", "conflicts"),
    [
        (["A", "a"], {(0, 1)}),
        (["A", "A"], {(0, 1)}),
        (["A", "B"], set()),
        (["a", "a"], set()),
        (["a", "A"], {(0, 1)}),
        (["A", "a", "a", "A"], {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}),
        (["A", "aB", "bC"], {(0, 1), (1, 2)}),
    ],
)
def test_a_write_conflicts_with_the_uses_around_it(uses: list[str], conflicts: set[tuple[int, int]]) -> None:
    assert set(direct_conflicts(phase(uses, APART), range(len(uses)))) == conflicts


def test_bytes_used_again_are_a_conflict_between_the_last_user_and_the_next() -> None:
    shared = phase(["A", "a", "B", "b"], [(0, 256), (128, 256)])
    assert (1, 2) in set(direct_conflicts(shared, range(4)))
    apart = phase(["A", "a", "B", "b"], [(0, 256), (256, 256)])
    assert (1, 2) not in set(direct_conflicts(apart, range(4)))


def test_bytes_used_again_by_a_smaller_buffer_leave_the_rest_to_the_first() -> None:
    three = phase(["A", "B", "C"], [(0, 300), (100, 100), (0, 300)])
    assert set(direct_conflicts(three, range(3))) == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ([(0, 1), (1, 2)], None),
        ([(0, 2)], (0, 1)),
        ([(0, 1)], (1, 2)),
        ([], (0, 1)),
    ],
)
def test_a_conflict_without_a_path_is_found(edges: list[tuple[int, int]], found: tuple[int, int] | None) -> None:
    assert unordered_conflict(phase(["A", "aB", "b"], APART, edges), (0, 1, 2)) == found


def test_independent_launches_need_no_edge() -> None:
    diamond = phase(["A", "aB", "aC", "bc"], APART, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert unordered_conflict(diamond, (0, 1, 2, 3)) is None


def test_a_path_through_a_launch_that_the_schedule_leaves_out_does_not_count() -> None:
    around = phase(["A", "", "a"], APART, [(0, 1), (1, 2)])
    assert unordered_conflict(around, (0, 1, 2)) is None
    assert unordered_conflict(around, (0, 2)) == (0, 2)


@pytest.mark.parametrize("seed", range(40))
def test_ordering_the_direct_conflicts_orders_every_conflict(seed: int) -> None:
    r = random.Random(seed)
    uses = ["".join(r.choice("abcABC") for _ in range(r.randrange(1, 3))) for _ in range(12)]
    places = [(r.randrange(4) * 64, r.choice((64, 128))) for _ in range(3)]
    made = phase(uses, places)
    order = range(len(uses))
    paths = _closure(set(direct_conflicts(made, order)), len(uses))
    for late in order:
        for early in range(late):
            if _conflict(made, early, late):
                assert (early, late) in paths, (uses, places, early, late)


def _conflict(made: Phase, early: int, late: int) -> bool:
    """The same buffer used by both and written by one (bytes shared by two buffers are the sweep's affair)."""
    one, two = memory_uses(made, made.launches[early]), memory_uses(made, made.launches[late])
    return any(a.index == b.index and (a.writes or b.writes) for a in one for b in two)


def _closure(pairs: set[tuple[int, int]], count: int) -> set[tuple[int, int]]:
    paths = set(pairs)
    for middle in range(count):
        paths |= {(a, d) for a, b in paths if b == middle for c, d in paths if c == middle}
    return paths


@pytest.mark.parametrize("seed", range(20))
def test_owners_remember_the_last_user_of_each_byte(seed: int) -> None:
    r = random.Random(seed)
    owners, bytes_of = Owners(), [-1] * 64
    for user in range(60):
        start = r.randrange(63)
        end = r.randrange(start + 1, 64)
        assert set(owners.take(start, end, user)) == set(bytes_of[start:end]) - {-1}
        bytes_of[start:end] = [user] * (end - start)


def test_the_edges_of_schedules_are_those_between_neighbours_of_either() -> None:
    assert schedule_edges([(0, 1, 3), (0, 1, 2)]) == (Edge(0, 1), Edge(1, 2), Edge(1, 3))


def test_a_launch_uses_what_may_change_and_nothing_else() -> None:
    launch = Launch(
        "x",
        "x",
        (
            Operand("w", "weight", 0, "read"),
            Operand("c", "constant", 0, "read"),
            Operand("s", "state", 2, "read_write"),
        ),
        {"cpu": ReferenceCall()},
    )
    assert memory_uses(small_plan().phases[0], launch) == [("state", 2, True, True)]
