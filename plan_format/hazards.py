"""Which launches touch the same memory, and are they ordered?

Two launches conflict if one writes what the other reads or writes: the same weight, state or parameter block, or
buffers that share bytes of the arena. Buffers that do not live at the same launch may share bytes: reusing the bytes is
a conflict too, between the last launch of the one and the first of the other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from hjgc.plan_format.structs import Edge, Launch, Operand, ParameterArgument, Phase, template_calls


class MemoryUse(NamedTuple):
    space: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index is of no use here)
    reads: bool
    writes: bool


def memory_uses(phase: Phase, launch: Launch) -> list[MemoryUse]:
    """What the launch touches that something may write (weights and constants never change): of a view, the buffer that
    it is one of."""
    uses = [
        MemoryUse(operand.space, _owner(phase, operand), operand.access != "write", operand.access != "read")
        for operand in launch.operands
        if operand.space not in ("weight", "constant")
    ]
    calls = [call for kernel in launch.kernels.values() for call in template_calls(kernel)]
    if any(isinstance(argument, ParameterArgument) for call in calls for argument in call.arguments):
        uses.append(MemoryUse("parameters", 0, reads=True, writes=False))
    return uses


def _owner(phase: Phase, operand: Operand) -> int:
    if operand.space != "buffer":
        return operand.index
    base = phase.buffers[operand.index].view_of
    return operand.index if base is None else base


def direct_conflicts(phase: Phase, order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of the launches in `order` such that ordering all of them orders every conflict: from each
    access to the previous write of the same memory, from each write to the reads since, and across reuse of bytes."""
    writer: dict[tuple[str, int], int] = {}
    readers: dict[tuple[str, int], list[int]] = {}
    for number in order:
        for use in memory_uses(phase, phase.launches[number]):
            place = (use.space, use.index)
            before = [writer[place]] if place in writer else []
            if use.writes:
                before += readers.pop(place, [])
            yield from ((earlier, number) for earlier in before if earlier != number)
            if use.writes:
                writer[place] = number
            else:
                readers.setdefault(place, []).append(number)
    yield from _reused_bytes(phase, order)


def _reused_bytes(phase: Phase, order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sweep over the arena: for each buffer, the buffers before it in time whose bytes it takes over."""
    owners = Owners()
    for index, (first, last) in _spans(phase, order).items():
        buffer = phase.buffers[index]
        for earlier in owners.take(buffer.offset, buffer.offset + buffer.bytes, last):
            yield earlier, first


class Owners:
    """Who had each byte last: ranges that do not overlap, in order, so that a range is found by halving."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._users: list[int] = []

    def take(self, start: int, end: int, user: int) -> list[int]:
        """Give the bytes to `user`; the users that had any of them, in order of place."""
        first, stop = bisect_right(self._ends, start), bisect_left(self._starts, end)
        met = self._users[first:stop]
        ranges = [(start, end, user)]
        if met and self._starts[first] < start:
            ranges.insert(0, (self._starts[first], start, met[0]))
        if met and self._ends[stop - 1] > end:
            ranges.append((end, self._ends[stop - 1], met[-1]))
        self._starts[first:stop] = [a for a, _, _ in ranges]
        self._ends[first:stop] = [b for _, b, _ in ranges]
        self._users[first:stop] = [u for _, _, u in ranges]
        return met


def _spans(phase: Phase, order: Sequence[int]) -> dict[int, tuple[int, int]]:
    """First and last user of each buffer, in order of first use."""
    spans: dict[int, tuple[int, int]] = {}
    for number in order:
        for use in memory_uses(phase, phase.launches[number]):
            if use.space == "buffer":
                spans[use.index] = (spans.get(use.index, (number, number))[0], number)
    return spans


def schedule_edges(orders: Iterable[Sequence[int]]) -> tuple[Edge, ...]:
    """Every launch after the one before it, in each of the orders."""
    pairs = {pair for order in orders for pair in pairwise(order)}
    return tuple(Edge(before, after) for before, after in sorted(pairs))


def is_chain(phase: Phase, order: Sequence[int]) -> bool:
    """Whether an edge leads from each launch of `order` to the next: then nothing in it is unordered."""
    links = {(edge.before, edge.after) for edge in phase.edges}
    return all(pair in links for pair in pairwise(order))


def unordered_conflict(phase: Phase, order: Sequence[int]) -> tuple[int, int] | None:
    """Two launches of `order` that touch the same memory with no path of edges within it between them, or None.

    Where `order` is no chain this takes memory for the square of its length, in bits."""
    if is_chain(phase, order):
        return None
    reach = _reachable(phase, order)
    place = {number: i for i, number in enumerate(order)}
    return next(((a, b) for a, b in direct_conflicts(phase, order) if not reach[place[b]] >> place[a] & 1), None)


def _reachable(phase: Phase, order: Sequence[int]) -> list[int]:
    """For each place in `order` the places before it on some path within it, as a bit mask."""
    place = {number: i for i, number in enumerate(order)}
    incoming: list[list[int]] = [[] for _ in order]
    for edge in phase.edges:
        if edge.before in place and edge.after in place:
            incoming[place[edge.after]].append(place[edge.before])
    reach = [0] * len(order)
    for after, edges in enumerate(incoming):
        for before in edges:
            reach[after] |= reach[before] | 1 << before
    return reach
