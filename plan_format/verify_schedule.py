"""Is a phase cut legally: launches in order, what is captured capturable, every read after its write?"""

from __future__ import annotations

from itertools import pairwise

from hjgc.plan_format.checker import Checker
from hjgc.plan_format.expressions import Ranges
from hjgc.plan_format.hazards import is_chain, memory_uses, unordered_conflict
from hjgc.plan_format.structs import (
    DynamicSegment,
    HostCall,
    IslandCall,
    Launch,
    Phase,
    RowsCall,
    Schedule,
    StaticSegment,
)

SCHEDULES = ("default", "logits_processor", "prompt_only")
MAX_BUCKETS = 4096
MAX_CHAIN = 64
MAX_UNCHAINED = 8192
"""Launches of a schedule whose edges are no chain: finding paths among more takes too much memory."""


def check_schedules(phase: Phase, keys: Ranges, where: str, check: Checker) -> None:
    check.unique_names((schedule.name for schedule in phase.schedules), f"{where}.schedules")
    check.require(any(s.name == "default" for s in phase.schedules), f"{where}.schedules", "one called default", "none")
    for i, schedule in enumerate(phase.schedules):
        place = f"{where}.schedules[{i}]"
        check.require(schedule.name in SCHEDULES, f"{place}.name", f"one of {SCHEDULES}", schedule.name)
        order = _check_segments(phase, schedule, keys, f"{place}.segments", check)
        _check_order(phase, order, f"{place}.segments", check)


def _check_segments(phase: Phase, schedule: Schedule, keys: Ranges, where: str, check: Checker) -> list[int]:
    """The launches of all segments, in order."""
    check.require(len(schedule.segments) > 0, where, "at least one", "none")
    order: list[int] = []
    for i, segment in enumerate(schedule.segments):
        place = f"{where}[{i}]"
        check.require(len(segment.launches) > 0, f"{place}.launches", "at least one", "none")
        for launch in segment.launches:
            check.index(launch, phase.launches, f"{place}.launches")
        order += segment.launches
        if isinstance(segment, StaticSegment):
            _check_static(phase, segment, keys, place, check)
        else:
            _check_dynamic(segment, place, check)
    return order


def _check_static(phase: Phase, segment: StaticSegment, keys: Ranges, where: str, check: Checker) -> None:
    for number in segment.launches:
        launch = phase.launches[number]
        if _on_host(launch, HostCall):
            check.fail(f"{where}.launches", f"expected no host call, found {launch.name!r}")
        if _on_host(launch, IslandCall):
            check.fail(f"{where}.launches", f"expected no island, found {launch.name!r}")
    check.require(segment.key.sizes == tuple(keys), f"{where}.key.sizes", f"{tuple(keys)}", segment.key.sizes)
    buckets = segment.key.buckets
    if phase.entry == "function":  # a graph for each set of sizes that is met
        check.require(buckets == (), f"{where}.key.buckets", "none for a function", buckets)
        return
    check.count(buckets, MAX_BUCKETS, f"{where}.key.buckets")
    low, high = keys.get("tokens", (1, 1))
    rising = all(a < b <= 2 * (a + 1) for a, b in pairwise(buckets))
    covers = bool(buckets) and buckets[-1] == high and low <= buckets[0]  # calls too short for the first run plainly
    check.require(rising and covers, f"{where}.key.buckets", f"rising to {high}, none over half empty", buckets)
    # Else the lengths of one bucket would make two calls, and a graph knows one.
    missing = sorted({end for n in segment.launches for end in _range_ends(phase.launches[n])} - set(buckets))
    check.require(not missing, f"{where}.key.buckets", "each range of rows to end with a bucket", missing)


def _range_ends(launch: Launch) -> list[int]:
    """The last row count of each range that one of the launch's kernels has."""
    calls = [kernel for kernel in launch.kernels.values() if isinstance(kernel, RowsCall)]
    return [entry.high for call in calls for entry in call.ranges]


def _on_host(launch: Launch, kind: type[HostCall | IslandCall]) -> bool:
    return any(isinstance(kernel, kind) for kernel in launch.kernels.values())


def _check_dynamic(segment: DynamicSegment, where: str, check: Checker) -> None:
    check.require(len(segment.reasons) > 0, f"{where}.reasons", "at least one", "none")
    members = set(segment.launches)
    for i, reason in enumerate(segment.reasons):
        place = f"{where}.reasons[{i}]"
        check.require(reason.launch in members, f"{place}.launch", "a launch of the segment", reason.launch)
        check.require(
            0 < len(reason.chain) <= MAX_CHAIN, f"{place}.chain", f"1 to {MAX_CHAIN} steps", len(reason.chain)
        )
        for step in reason.chain:
            check.text(step, f"{place}.chain")


def _check_order(phase: Phase, order: list[int], where: str, check: Checker) -> None:
    check.require(all(a < b for a, b in pairwise(order)), where, "launches in rising order", order)
    if len(order) > MAX_UNCHAINED and not is_chain(phase, order):
        problem = f"expected an edge from each launch to the next (there are over {MAX_UNCHAINED}), found some missing"
        check.fail(where, problem)
    conflict = unordered_conflict(phase, order)
    if conflict is not None:
        check.fail(where, f"expected launch {conflict[0]} ordered before {conflict[1]}, found no path of edges")
    _check_written_before_read(phase, order, where, check)


def _check_written_before_read(phase: Phase, order: list[int], where: str, check: Checker) -> None:
    written: set[int] = set(phase.inputs)
    for number in order:
        uses = [use for use in memory_uses(phase, phase.launches[number]) if use.space == "buffer"]
        for use in uses:
            if use.reads and use.index not in written:
                name = phase.buffers[use.index].name
                check.fail(where, f"expected {name!r} written before launch {number} reads it, found it not")
        written.update(use.index for use in uses if use.writes)
