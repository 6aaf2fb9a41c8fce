"""Which launches touch the same memory, and are they ordered?

Two launches conflict if one writes what the other reads or writes: the same weight, state or parameter block, or
buffers that share bytes of the arena. Buffers that do not live at the same launch may share bytes: reusing the bytes is
a conflict too, between the last launch of the one and the first of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hjgc.plan_format.structs import Edge, Launch, ParameterArgument, Phase, TemplateCall


class MemoryUse(NamedTuple):
    space: str
    index: int
    reads: bool
    writes: bool


def memory_uses(launch: Launch) -> list[MemoryUse]:
    """What the launch touches that something may write (weights and constants never change)."""
    uses = [
        MemoryUse(operand.space, operand.index, operand.access != "write", operand.access != "read")
        for operand in launch.operands
        if operand.space not in ("weight", "constant")
    ]
    calls = [kernel for kernel in launch.kernels.values() if isinstance(kernel, TemplateCall)]
    if any(isinstance(argument, ParameterArgument) for call in calls for argument in call.arguments):
        uses.append(MemoryUse("parameters", 0, reads=True, writes=False))
    return uses


def direct_conflicts(phase: Phase, order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of the launches in `order` such that ordering all of them orders every conflict: from each
    access to the previous write of the same memory, from each write to the reads since, and across reuse of bytes."""
    writer: dict[tuple[str, int], int] = {}
    readers: dict[tuple[str, int], list[int]] = {}
    for number in order:
        for use in memory_uses(phase.launches[number]):
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
    owners: list[tuple[int, int, int]] = []
    for index, (first, last) in _spans(phase, order).items():
        buffer = phase.buffers[index]
        end = buffer.offset + buffer.bytes
        kept: list[tuple[int, int, int]] = []
        for low, high, user in owners:
            if high <= buffer.offset or end <= low:
                kept.append((low, high, user))
                continue
            yield user, first
            kept += [(a, b, user) for a, b in ((low, buffer.offset), (end, high)) if a < b]
        owners = [*kept, (buffer.offset, end, last)]


def _spans(phase: Phase, order: Sequence[int]) -> dict[int, tuple[int, int]]:
    """First and last user of each buffer, in order of first use."""
    spans: dict[int, tuple[int, int]] = {}
    for number in order:
        for use in memory_uses(phase.launches[number]):
            if use.space == "buffer":
                spans[use.index] = (spans.get(use.index, (number, number))[0], number)
    return spans


def schedule_edges(orders: Iterable[Sequence[int]]) -> tuple[Edge, ...]:
    """Every launch after the one before it, in each of the orders."""
    pairs = {pair for order in orders for pair in zip(order, order[1:], strict=False)}
    return tuple(Edge(before, after) for before, after in sorted(pairs))


def unordered_conflict(phase: Phase, order: Sequence[int]) -> tuple[int, int] | None:
    """Two launches of `order` that touch the same memory with no path of edges within it between them, or None."""
    links = {(edge.before, edge.after) for edge in phase.edges}
    if all(pair in links for pair in zip(order, order[1:], strict=False)):
        return None
    reach = _reachable(phase, order)
    return next(((a, b) for a, b in direct_conflicts(phase, order) if not reach[b] >> a & 1), None)


def _reachable(phase: Phase, order: Sequence[int]) -> dict[int, int]:
    """For each launch of `order` the set of launches before it on some path within it, as a bit mask."""
    reach = dict.fromkeys(order, 0)
    incoming: dict[int, list[int]] = {number: [] for number in order}
    for edge in phase.edges:
        if edge.before in reach and edge.after in reach:
            incoming[edge.after].append(edge.before)
    for after in order:
        for before in incoming[after]:
            reach[after] |= reach[before] | 1 << before
    return reach
