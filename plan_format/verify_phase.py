"""Is one phase legal: its sizes, buffers and edges, and, as their own files say, its launches and schedules?"""

from __future__ import annotations

import math
from bisect import bisect_left
from heapq import heappop, heappush

from hjgc.plan_format.checker import Checker
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.expressions import Ranges, check_expression
from hjgc.plan_format.structs import Buffer, Launch, Phase, Plan, template_calls
from hjgc.plan_format.verify_launch import LaunchVerifier
from hjgc.plan_format.verify_schedule import check_schedules

MAX_LAUNCHES = 1 << 20
MAX_EDGES_PER_LAUNCH = 64
SIZE_NAMES = ("tokens", "start", "length")
MAX_AXES = 8
ALIGNMENT = 256


def verify_phase(plan: Plan, phase: Phase, where: str, check: Checker) -> None:
    """Check one phase. Raises PlanError."""
    count = len(phase.launches)
    check.require(0 < count <= MAX_LAUNCHES, f"{where}.launches", f"1 to {MAX_LAUNCHES}", count)
    check.text(phase.numerics, f"{where}.numerics")
    ranges = _check_sizes(plan, phase, where, check)
    keys = {size.name: ranges[size.name] for size in phase.sizes if size.lives == "key"}
    _check_buffers(plan, phase, keys, where, check)
    _check_disjoint(phase, where, check)
    _check_ends(phase, where, check)
    check.unique_names((launch.name for launch in phase.launches), f"{where}.launches")
    verifier = LaunchVerifier(plan, phase, keys, check)
    for i, launch in enumerate(phase.launches):
        verifier.run(i, launch, f"{where}.launches[{i}]")
    _check_edges(plan, phase, where, check)
    check_schedules(phase, keys, where, check)


def _check_sizes(plan: Plan, phase: Phase, where: str, check: Checker) -> Ranges:
    """`tokens` is the key, and a phase without it takes one row a call; nothing goes past the context."""
    check.unique_names((size.name for size in phase.sizes), f"{where}.sizes")
    ranges: dict[str, tuple[int, int]] = {}
    for i, size in enumerate(phase.sizes):
        place = f"{where}.sizes[{i}]"
        check.require(size.name in SIZE_NAMES, f"{place}.name", f"one of {SIZE_NAMES}", size.name)
        lives = "key" if size.name == "tokens" else "device"
        check.require(size.lives == lives, f"{place}.lives", f"{lives!r} for {size.name}", size.lives)
        lowest = 0 if size.name == "start" else 1
        check.require(lowest <= size.low <= size.high, f"{place}.low", f"{lowest} to {size.high}", size.low)
        check.require(size.high <= plan.model.context, f"{place}.high", f"up to {plan.model.context}", size.high)
        ranges[size.name] = (size.low, size.high)
    rows = ranges.get("tokens", (1, 1))[1]
    longest = ranges.get("length", (1, 1))[1]
    check.require(longest <= rows, f"{where}.sizes", f"a length of up to {rows}, the rows of a call", longest)
    return ranges


def _check_buffers(plan: Plan, phase: Phase, keys: Ranges, where: str, check: Checker) -> None:
    check.unique_names((buffer.name for buffer in phase.buffers), f"{where}.buffers")
    for i, buffer in enumerate(phase.buffers):
        _check_buffer(plan, len(phase.launches) - 1, buffer, keys, f"{where}.buffers[{i}]", check)


def _check_buffer(plan: Plan, last: int, buffer: Buffer, keys: Ranges, where: str, check: Checker) -> None:
    check.count(buffer.shape, MAX_AXES, f"{where}.shape")
    axes = [check_expression(axis, keys, f"{where}.shape", check) for axis in buffer.shape]
    check.require(all(low >= 1 for low, _ in axes), f"{where}.shape", "axes of 1 or more", axes)
    need = math.prod(high for _, high in axes) * ITEM_BYTES[buffer.dtype]
    if not need <= buffer.bytes <= plan.arena_bytes:
        check.fail(f"{where}.bytes", f"expected {need} to {plan.arena_bytes}, found {buffer.bytes}")
    end = plan.arena_bytes - buffer.bytes
    if buffer.offset % ALIGNMENT or not 0 <= buffer.offset <= end:
        check.fail(f"{where}.offset", f"expected a multiple of {ALIGNMENT} up to {end}, found {buffer.offset}")
    if not 0 <= buffer.first <= buffer.last <= last:
        check.fail(f"{where}.first", f"expected launches of 0 to {last}, found {buffer.first} to {buffer.last}")


def _check_disjoint(phase: Phase, where: str, check: Checker) -> None:
    """No two buffers that live at one launch share a byte: walk by first launch, keep those alive in order of place
    (they are apart, so only neighbours can meet a new one)."""
    alive: list[tuple[int, int]] = []  # offset, index
    leaving: list[tuple[int, int, int]] = []  # last launch, offset, index
    for i in sorted(range(len(phase.buffers)), key=lambda i: phase.buffers[i].first):
        buffer = phase.buffers[i]
        while leaving and leaving[0][0] < buffer.first:
            del alive[bisect_left(alive, heappop(leaving)[1:])]
        place = bisect_left(alive, (buffer.offset, i))
        for _, j in alive[max(0, place - 1) : place + 1]:
            other = phase.buffers[j]
            apart = buffer.offset + buffer.bytes <= other.offset or other.offset + other.bytes <= buffer.offset
            if not apart:
                check.fail(
                    f"{where}.buffers[{i}]", f"expected no byte shared with {other.name!r}, found {buffer.name!r}"
                )
        alive.insert(place, (buffer.offset, i))
        heappush(leaving, (buffer.last, buffer.offset, i))


def _check_ends(phase: Phase, where: str, check: Checker) -> None:
    """What the caller fills must live from the first launch on, what it reads to the last."""
    last = len(phase.launches) - 1
    for name, indices in (("inputs", phase.inputs), ("outputs", phase.outputs)):
        check.require(len(set(indices)) == len(indices), f"{where}.{name}", "each buffer once", indices)
        for i, index in enumerate(indices):
            place = f"{where}.{name}[{i}]"
            check.index(index, phase.buffers, place)
            buffer = phase.buffers[index]
            alive = buffer.first == 0 if name == "inputs" else buffer.last == last
            check.require(alive, place, f"alive at launch {0 if name == 'inputs' else last}", buffer.name)
    given = bool(phase.inputs) == (phase.entry != "token")
    check.require(given, f"{where}.inputs", f"what entry {phase.entry!r} needs", phase.inputs)


def _check_edges(plan: Plan, phase: Phase, where: str, check: Checker) -> None:
    count = len(phase.launches)
    check.count(phase.edges, MAX_EDGES_PER_LAUNCH * count, f"{where}.edges")
    overlapping = [_overlaps_on(plan, launch) for launch in phase.launches]
    seen: set[tuple[int, int]] = set()
    for i, edge in enumerate(phase.edges):
        ends = (edge.before, edge.after)
        if not 0 <= edge.before < edge.after < count:
            check.fail(f"{where}.edges[{i}]", f"expected before < after < {count}, found {ends}")
        if ends in seen:
            check.fail(f"{where}.edges[{i}]", f"expected each edge once, found {ends} again")
        seen.add(ends)
        if edge.kind == "pdl" and not overlapping[edge.before] & overlapping[edge.after]:
            check.fail(f"{where}.edges[{i}].kind", "expected pdl between kernels built for it, found another")


def _overlaps_on(plan: Plan, launch: Launch) -> set[str]:
    """The targets for which the launch may be a variant built for programmatic dependent launch."""
    calls = [(target, call) for target, kernel in launch.kernels.items() for call in template_calls(kernel)]
    return {target for target, call in calls if plan.variants[call.variant].pdl}
