"""What does a plan say about itself, as data that another program may rely on? (`docs/cli.md` describes it.)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format import DebugMap, PlanFile
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import DynamicSegment, Launch, Phase, Plan, Port, Schedule, Segment, StaticSegment
from hjgc.plan_format.text import operand_name
from hjgc.tools.console import as_data
from hjgc.tools.costs import launch_cost


def describe(file: PlanFile, phases: Sequence[Phase]) -> dict[str, Any]:
    """The plan without its launches. Nothing here names an index into the plan's tables."""
    plan, sections = file.plan, file.section_lengths()
    return {
        "file": {"path": str(file.path), "bytes": file.path.stat().st_size, "sections": sections},
        "format": plan.format,
        "features": list(plan.features),
        "producer": as_data(plan.producer),
        "model": as_data(plan.model),
        "targets": list(plan.targets),
        "dtypes": as_data(plan.dtypes),
        "weights": {"count": len(plan.weights), "files": [{"name": f.name, "bytes": f.bytes} for f in plan.files]},
        "states": [{"name": s.name, "kind": s.kind, "dtype": s.dtype, "shape": list(s.shape)} for s in plan.states],
        "ledger": as_data(plan.ledger),
        "islands": len(plan.islands),
        "phases": [_phase(phase) for phase in phases],
    }


def chosen_phases(file: PlanFile, name: str | None) -> Sequence[Phase]:
    """All phases, or the one of that name. Raises InputError."""
    phases = file.plan.phases
    found = [phase for phase in phases if name in (None, phase.name)]
    if not found:
        known = ", ".join(phase.name for phase in phases)
        raise InputError(file.path, f"expected one of {known}, found {name!r}", field="--phase")
    return found


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "entry": phase.entry,
        "logits_rows": phase.logits_rows,
        "numerics": phase.numerics,
        "arguments": [_port(port) for port in phase.arguments],
        "results": [_port(port) for port in phase.results],
        "sizes": [{"name": s.name, "low": s.low, "high": s.high, "lives": s.lives} for s in phase.sizes],
        "launch_count": len(phase.launches),
        "ops": dict(sorted(Counter(launch.op for launch in phase.launches).items())),
        "schedules": [_schedule(phase, schedule) for schedule in phase.schedules],
    }


def _port(port: Port) -> dict[str, str]:
    """A function's operand or result: an axis that is not known is `?`."""
    axes = ", ".join("?" if axis is None else spell(axis) for axis in port.shape or ())
    return {"name": port.name, "type": port.type, "shape": "of any shape" if port.shape is None else f"[{axes}]"}


def _schedule(phase: Phase, schedule: Schedule) -> dict[str, Any]:
    return {"name": schedule.name, "segments": [_segment(phase, segment) for segment in schedule.segments]}


def _segment(phase: Phase, segment: Segment) -> dict[str, Any]:
    if isinstance(segment, StaticSegment):
        key = {"sizes": list(segment.key.sizes), "buckets": list(segment.key.buckets)}
        return {"verdict": "static", "launches": list(segment.launches), "key": key}
    return {"verdict": "dynamic", "launches": list(segment.launches), "reasons": _reasons(phase, segment)}


def _reasons(phase: Phase, segment: DynamicSegment) -> list[dict[str, Any]]:
    return [
        {
            "launch": reason.launch,
            "name": phase.launches[reason.launch].name,
            "code": reason.code.value,
            "sentence": reason.code.sentence,
            "chain": list(reason.chain),
        }
        for reason in segment.reasons
    ]


def describe_launches(
    plan: Plan, phase: Phase, debug: DebugMap | None, *, tokens: int | None, start: int
) -> list[dict[str, Any]]:
    """Every launch of a phase, with its cost for `tokens` rows (None: the fewest the phase takes) after `start`."""
    rows = _rows(phase, tokens)
    _check_start(phase, start)
    nodes = _nodes(phase, debug)
    return [
        _launch(plan, phase, number, rows, start) | {"nodes": nodes.get(number, [])}
        for number in range(len(phase.launches))
    ]


def _rows(phase: Phase, tokens: int | None) -> int:
    """Within what the phase takes: decode always takes one. Raises InputError for a number no phase could take."""
    limits = next(((s.low, s.high) for s in phase.sizes if s.name == "tokens"), (1, 1))
    if tokens is None or limits == (1, 1):
        return limits[0]
    if not limits[0] <= tokens <= limits[1]:
        raise InputError("--tokens", f"expected {limits[0]} to {limits[1]} for phase {phase.name}, found {tokens}")
    return tokens


def _check_start(phase: Phase, start: int) -> None:
    high = next((size.high for size in phase.sizes if size.name == "start"), 0)
    if start > high:
        raise InputError("--start", f"expected 0 to {high} for phase {phase.name}, found {start}")


def _nodes(phase: Phase, debug: DebugMap | None) -> Mapping[int, list[str]]:
    """The ONNX nodes of each launch by number; empty if the debug map was stripped."""
    if debug is None:
        return {}
    found = next((entry.launches for entry in debug.phases if entry.phase == phase.name), ())
    return {number: list(launch.nodes) for number, launch in enumerate(found)}


def _launch(plan: Plan, phase: Phase, number: int, tokens: int, start: int) -> dict[str, Any]:
    launch = phase.launches[number]
    cost = launch_cost(plan, phase, launch, tokens=tokens, start=start)
    return {
        "number": number,
        "name": launch.name,
        "op": launch.op,
        "operands": _operands(plan, phase, launch),
        "attributes": dict(sorted(launch.attributes.items())),
        "kernels": {target: as_data(kernel) for target, kernel in sorted(launch.kernels.items())},
        "tokens": tokens,
        "start": start,
        "flops": cost.flops,
        "bytes": cost.bytes,
    }


def _operands(plan: Plan, phase: Phase, launch: Launch) -> list[dict[str, str]]:
    return [
        {
            "role": operand.role,
            "space": operand.space,
            "name": operand_name(plan, phase, operand.space, operand.index),
            "access": operand.access,
        }
        for operand in launch.operands
    ]
