"""What became of a node of the ONNX model: which launches, in which segments, with which kernels?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hjgc.plan_format import DebugMap
from hjgc.plan_format.structs import (
    DynamicSegment,
    HostCall,
    IslandCall,
    Kernel,
    LibraryCall,
    Phase,
    Plan,
    ReferenceCall,
    RowsCall,
    TemplateCall,
)
from hjgc.tools.explaining.chains import view


@dataclass(frozen=True)
class Found:
    """A launch that stands for a node that was asked for, or is called so. `nodes` are those of its own that match; all
    of them where its name does."""

    phase: Phase
    number: int
    nodes: tuple[str, ...]


def find(plan: Plan, debug: DebugMap | None, name: str) -> tuple[Found, ...]:
    """Launches whose ONNX node, or whose own name, is `name`; where none is, those of which it is a part."""
    return tuple(_matching(plan, debug, name, part=False)) or tuple(_matching(plan, debug, name, part=True))


def _matching(plan: Plan, debug: DebugMap | None, name: str, *, part: bool) -> Iterator[Found]:
    for phase in plan.phases:
        seen = view(plan, phase, debug)
        for number, launch in enumerate(phase.launches):
            nodes = seen.nodes(number)
            hit = tuple(node for node in nodes if node == name or (part and name in node))
            if hit or launch.name == name or (part and name in launch.name):
                yield Found(phase, number, hit or nodes)


def known_names(plan: Plan, debug: DebugMap | None) -> list[str]:
    """Everything that could have been asked for, once each."""
    names: dict[str, None] = {}
    for phase in plan.phases:
        seen = view(plan, phase, debug)
        for number, launch in enumerate(phase.launches):
            names |= dict.fromkeys((launch.name, *seen.nodes(number)))
    return list(names)


def verdicts(phase: Phase) -> dict[int, list[dict[str, Any]]]:
    """Of each launch, by the schedules that run it: which segment it is in, and what that is."""
    found: dict[int, list[dict[str, Any]]] = {}
    for schedule in phase.schedules:
        for place, segment in enumerate(schedule.segments):
            verdict = {
                "schedule": schedule.name,
                "segment": place,
                "verdict": "dynamic" if isinstance(segment, DynamicSegment) else "static",
                "buckets": [] if isinstance(segment, DynamicSegment) else list(segment.key.buckets),
            }
            for number in segment.launches:
                found.setdefault(number, []).append(verdict)
    return found


def kernels(plan: Plan, phase: Phase, number: int) -> dict[str, list[dict[str, Any]]]:
    """By target, one entry for each range of rows that is served alike."""
    made = phase.launches[number].kernels
    return {target: _calls(plan, kernel) for target, kernel in sorted(made.items())}


def _calls(plan: Plan, kernel: Kernel) -> list[dict[str, Any]]:
    match kernel:
        case ReferenceCall():
            return [{"type": "reference"}]
        case IslandCall():
            return [{"type": "island", "island": kernel.island}]
        case HostCall():
            return [{"type": "host", "callback": kernel.callback}]
        case LibraryCall():
            return [{"type": "library", "library": kernel.library, "routine": kernel.routine}]
        case TemplateCall():
            return [_call(plan, kernel, None)]
        case RowsCall():
            return _merged([_call(plan, entry.call, entry.high) for entry in kernel.ranges])


def _call(plan: Plan, call: TemplateCall, rows: int | None) -> dict[str, Any]:
    """`rows`: up to which it serves; None: all."""
    variant = plan.variants[call.variant]
    return {
        "type": "template",
        "rows": rows,
        "template": plan.templates[variant.template].name,
        "axes": dict(sorted(variant.axes.items())),
        "pdl": variant.pdl,
        "built": variant.built is not None,
        "threads": None if variant.built is None else variant.built.threads,
        "shared_bytes": None if variant.built is None else variant.built.shared_bytes,
        "registers": None if variant.built is None else variant.built.registers,
    }


def _merged(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring ranges of one variant as one."""
    merged: list[dict[str, Any]] = []
    for call in calls:
        if merged and {**merged[-1], "rows": 0} == {**call, "rows": 0}:
            merged[-1] = call
        else:
            merged.append(call)
    return merged
