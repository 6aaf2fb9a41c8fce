"""What differs in how two plans run: segments and cuts, buckets, launches, the order between them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hjgc.plan_format.structs import (
    Attribute,
    DynamicSegment,
    Phase,
    Schedule,
    StaticSegment,
)
from hjgc.plan_format.text import operand_name
from hjgc.tools.differing.kernels import compare_kernels
from hjgc.tools.differing.sides import Aligned, Change, Side
from hjgc.tools.differing.tables import Value, compare
from hjgc.tools.explaining.chains import View


def compare_launches(a: Side, b: Side, phases: tuple[Aligned, ...]) -> Iterator[Change]:
    one, other = (", ".join(phase.name for phase in each.plan.phases) for each in (a, b))
    yield from compare("segments", "plan", {"phases": one}, {"phases": other})
    for phase in phases:
        yield from _schedules(phase)
        yield from _alone(phase)
        for i, j in phase.pairs:
            yield from _launch(phase, i, j)
        yield from _other(phase)


def _schedules(phase: Aligned) -> Iterator[Change]:
    """Where each is cut, and for which numbers of rows its graphs are. Launches are called as in the first plan."""
    names = {j: phase.a.phase.launches[i].name for i, j in phase.pairs}
    ours = {s.name: s for s in phase.a.phase.schedules}
    theirs = {s.name: s for s in phase.b.phase.schedules}
    for name in dict.fromkeys((*ours, *theirs)):
        item = f"{phase.name}/{name}"
        before, after = _cuts(phase.a.phase, ours.get(name), {}), _cuts(phase.b.phase, theirs.get(name), names)
        yield from compare("segments", item, {"segments": before}, {"segments": after})
        yield from compare(
            "buckets", item, {"buckets": _buckets(ours.get(name))}, {"buckets": _buckets(theirs.get(name))}
        )


def _cuts(phase: Phase, schedule: Schedule | None, names: Mapping[int, str]) -> str | None:
    """`static | dynamic: caller_logits (HOST_READ) | static`."""
    if schedule is None:
        return None
    words: list[str] = []
    for segment in schedule.segments:
        if isinstance(segment, StaticSegment):
            words.append("static")
            continue
        launches = ", ".join(names.get(number, phase.launches[number].name) for number in segment.launches)
        words.append(f"dynamic: {launches} ({_codes(segment)})")
    return " | ".join(words)


def _codes(segment: DynamicSegment) -> str:
    return ", ".join(dict.fromkeys(reason.code.value for reason in segment.reasons))


def _buckets(schedule: Schedule | None) -> str | None:
    """Of its static segments, each list once."""
    if schedule is None:
        return None
    keys = [segment.key.buckets for segment in schedule.segments if isinstance(segment, StaticSegment)]
    return "; ".join(dict.fromkeys(", ".join(map(str, buckets)) for buckets in keys))


def _alone(phase: Aligned) -> Iterator[Change]:
    for number in phase.only_a:
        launch = phase.a.phase.launches[number]
        yield Change("launches", f"{phase.name}/{launch.name}", "launch", launch.op, None)
    for number in phase.only_b:
        launch = phase.b.phase.launches[number]
        yield Change("launches", f"{phase.name}/{launch.name}", "launch", None, launch.op)


def _launch(phase: Aligned, i: int, j: int) -> Iterator[Change]:
    one, other = phase.a.phase.launches[i], phase.b.phase.launches[j]
    item = f"{phase.name}/{one.name}"
    yield from compare("launches", item, _facts(phase.a, i), _facts(phase.b, j))
    if phase.a.debug and phase.b.debug:
        yield from compare("provenance", item, *_nodes(phase, i, j))
    yield from compare_kernels(item, phase.a.plan, one, phase.b.plan, other)


def _nodes(phase: Aligned, i: int, j: int) -> tuple[dict[str, Value], dict[str, Value]]:
    """The ONNX nodes that only one of the two launches stands for."""
    one, other = phase.a.nodes(i), phase.b.nodes(j)
    gone, new = [n for n in one if n not in other], [n for n in other if n not in one]
    return {"nodes": ", ".join(gone) or None}, {"nodes": ", ".join(new) or None}


def _facts(seen: View, number: int) -> dict[str, Value]:
    launch = seen.phase.launches[number]
    operands = {o.role: f"{o.space} {operand_name(seen.plan, seen.phase, o.space, o.index)}" for o in launch.operands}
    return {
        "name": launch.name,
        "op": launch.op,
        "placement": f"{launch.placement} {launch.device} rank {launch.rank}",
        **{f"operand {role}": name for role, name in operands.items()},
        **{f"attribute {name}": _spelt(value) for name, value in launch.attributes.items()},
    }


def _spelt(value: Attribute) -> Value:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def _other(phase: Aligned) -> Iterator[Change]:
    """Memory of activations, edges, and what a phase says of itself."""
    one, other = phase.a.phase, phase.b.phase
    yield from compare("phases", phase.name, _of_phase(one), _of_phase(other))
    ours, theirs = set(one.buffers), set(other.buffers)
    if ours != theirs:
        before, after = (f"{len(each)}" for each in (one.buffers, other.buffers))
        yield Change("memory", phase.name, "buffers", before, f"{after}, {len(theirs - ours)} placed or made otherwise")
    edges, others = _edges(one), _edges(other)
    if edges != others:
        yield Change("edges", phase.name, "edges", f"{len(edges)}", f"{len(others)}, {len(others - edges)} others")


def _of_phase(phase: Phase) -> dict[str, Value]:
    return {"entry": phase.entry, "logits_rows": phase.logits_rows, "numerics": phase.numerics}


def _edges(phase: Phase) -> set[tuple[str, str, str]]:
    names = [launch.name for launch in phase.launches]
    return {(names[edge.before], names[edge.after], edge.kind) for edge in phase.edges}
