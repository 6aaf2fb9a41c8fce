"""Is one phase legal: its sizes, buffers and edges, and, as their own files say, its launches and schedules?"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from heapq import heappop, heappush

from hjgc.plan_format import dims
from hjgc.plan_format.checker import Checker
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.expressions import Ranges, check_expression
from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import Buffer, Launch, Phase, Plan, Port, template_calls
from hjgc.plan_format.verify_launch import LaunchVerifier
from hjgc.plan_format.verify_schedule import check_schedules

MAX_LAUNCHES = 1 << 20
MAX_EDGES_PER_LAUNCH = 64
SIZE_NAMES = ("tokens", "start", "length")
SIZE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
"""Of a function's sizes."""
MAX_SIZE = 1 << 31
MAX_SIZES = 64
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
    _check_ports(phase, keys, where, check)
    check.unique_names((launch.name for launch in phase.launches), f"{where}.launches")
    verifier = LaunchVerifier(plan, phase, keys, check)
    for i, launch in enumerate(phase.launches):
        verifier.run(i, launch, f"{where}.launches[{i}]")
    _check_edges(plan, phase, where, check)
    check_schedules(phase, keys, where, check)


def _check_sizes(plan: Plan, phase: Phase, where: str, check: Checker) -> Ranges:
    """`tokens` is the key, and a phase without it takes one row a call; nothing goes past the context. A function's
    sizes are keys of any name."""
    check.unique_names((size.name for size in phase.sizes), f"{where}.sizes")
    if phase.entry == "function":
        return _check_function_sizes(phase, where, check)
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


def _check_function_sizes(phase: Phase, where: str, check: Checker) -> Ranges:
    check.count(phase.sizes, MAX_SIZES, f"{where}.sizes")
    for i, size in enumerate(phase.sizes):
        place = f"{where}.sizes[{i}]"
        named = SIZE_NAME.fullmatch(size.name) is not None
        check.require(named, f"{place}.name", "a name of letters, digits, _ and dots", size.name)
        check.require(size.lives == "key", f"{place}.lives", "'key' for a function's size", size.lives)
        within = 0 <= size.low <= size.high <= MAX_SIZE
        check.require(within, f"{place}.low", f"0 to high, and that up to {MAX_SIZE}", (size.low, size.high))
    return {size.name: (size.low, size.high) for size in phase.sizes}


def _check_buffers(plan: Plan, phase: Phase, keys: Ranges, where: str, check: Checker) -> None:
    check.unique_names((buffer.name for buffer in phase.buffers), f"{where}.buffers")
    for i, buffer in enumerate(phase.buffers):
        _check_buffer(plan, phase, buffer, keys, f"{where}.buffers[{i}]", check)
        if buffer.view_of is not None:
            _check_view(phase, buffer, buffer.view_of, f"{where}.buffers[{i}]", check)


def _check_view(phase: Phase, buffer: Buffer, index: int, where: str, check: Checker) -> None:
    """The same bytes in another shape, while the buffer that owns them lives."""
    check.index(index, phase.buffers, f"{where}.view_of")
    base = phase.buffers[index]
    check.require(base.view_of is None, f"{where}.view_of", "a buffer that is no view itself", base.name)
    same = (base.dtype, base.offset, base.bytes) == (buffer.dtype, buffer.offset, buffer.bytes)
    check.require(same, f"{where}.view_of", f"type, offset and bytes of {base.name!r}", buffer.name)
    try:
        counts = dims.product(buffer.shape), dims.product(base.shape)
    except ValueError as error:
        check.fail(f"{where}.shape", str(error))
    check.require(counts[0] == counts[1], f"{where}.shape", f"{spell(counts[1])} elements", spell(counts[0]))
    alive = base.first <= buffer.first and buffer.last <= base.last
    check.require(alive, f"{where}.first", f"launches of {base.first} to {base.last}", (buffer.first, buffer.last))


def _check_buffer(plan: Plan, phase: Phase, buffer: Buffer, keys: Ranges, where: str, check: Checker) -> None:
    last = len(phase.launches) - 1
    check.count(buffer.shape, MAX_AXES, f"{where}.shape")
    axes = [check_expression(axis, keys, f"{where}.shape", check) for axis in buffer.shape]
    least = 0 if phase.entry == "function" else 1
    check.require(all(low >= least for low, _ in axes), f"{where}.shape", f"axes of {least} or more", axes)
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
    owners = [i for i, buffer in enumerate(phase.buffers) if buffer.view_of is None]
    for i in sorted(owners, key=lambda i: phase.buffers[i].first):
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
    given = bool(phase.inputs) == (phase.entry != "token") or phase.entry == "function"
    check.require(given, f"{where}.inputs", f"what entry {phase.entry!r} needs", phase.inputs)


def _check_ports(phase: Phase, keys: Ranges, where: str, check: Checker) -> None:
    """A function's operands and results by name: each input and output buffer has one, and no other."""
    function = phase.entry == "function"
    check.require(function or not phase.arguments + phase.results, f"{where}.arguments", "none", phase.entry)
    check.unique_names((value.name for value in phase.values), f"{where}.values")
    for i, value in enumerate(phase.values):
        check.text(value.type, f"{where}.values[{i}].type")
    for name, ports, buffers in (
        ("arguments", phase.arguments, phase.inputs),
        ("results", phase.results, phase.outputs),
    ):
        check.unique_names((port.name for port in ports), f"{where}.{name}")
        for i, port in enumerate(ports):
            _check_port(phase, port, keys, f"{where}.{name}[{i}]", check)
        named = [port.index for port in ports if port.space == "buffer"]
        check.require(not function or set(named) == set(buffers), f"{where}.{name}", f"buffers {buffers}", named)


def _check_port(phase: Phase, port: Port, keys: Ranges, where: str, check: Checker) -> None:
    check.index(port.index, phase.buffers if port.space == "buffer" else phase.values, f"{where}.index")
    check.text(port.type, f"{where}.type")
    check.count(port.shape or (), MAX_AXES, f"{where}.shape")
    for axis in port.shape or ():
        if axis is not None:
            check_expression(axis, keys, f"{where}.shape", check)
    if port.space == "buffer":
        buffer = phase.buffers[port.index]
        check.require(port.shape == buffer.shape, f"{where}.shape", "that of its buffer", buffer.name)


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
