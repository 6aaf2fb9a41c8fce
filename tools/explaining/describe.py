"""What does `hjgc explain` say about a plan, as data that another program may rely on? (`docs/cli.md` describes it.)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hjgc.plan_format import DebugMap, PlanFile
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import DynamicSegment, Phase
from hjgc.tools.explaining.calls import call
from hjgc.tools.explaining.chains import View, causes, view
from hjgc.tools.explaining.lengths import lengths
from hjgc.tools.explaining.nodes import Found, find, kernels, known_names, verdicts
from hjgc.tools.explaining.remedies import remedy
from hjgc.tools.explaining.spending import spending
from hjgc.tools.prediction import Prediction, prediction

STRIPPED = (
    "which ONNX nodes a launch stands for, beyond those that the reasons of dynamic launches name",
    "rewrites that almost fired",
)
"""What a plan without a debug section cannot tell."""


def explain(file: PlanFile) -> dict[str, Any]:
    """The whole plan: what is dynamic and why, what almost fired, which prompt lengths have no graph or no code."""
    plan, debug = file.plan, file.debug()
    predicted = prediction(plan)
    return {
        **_head(file, debug, predicted),
        "call": call(plan),
        "phases": [_phase(phase) for phase in plan.phases],
        "dynamic": [entry for phase in plan.phases for entry in _dynamic(view(plan, phase, debug), predicted)],
        "almost_fired": [
            {"rule": note.rule, "node": note.node, "why": note.why} for note in (debug.notes if debug else ())
        ],
        "lengths": [
            {"how": e.how, "low": e.low, "high": e.high, "target": e.target, "why": e.why, "change": e.change}
            for e in lengths(plan)
        ],
    }


def explain_node(file: PlanFile, name: str) -> dict[str, Any]:
    """What became of a node, or of a launch, of that name or with that part of a name. Raises InputError."""
    plan, debug = file.plan, file.debug()
    found = find(plan, debug, name) if name else ()
    if not found:
        raise _nothing(file, debug, name)
    predicted = prediction(plan)
    launches = [launch for phase in plan.phases for launch in _launches(view(plan, phase, debug), found, predicted)]
    return {**_head(file, debug, predicted), "node": name, "launches": launches}


def _nothing(file: PlanFile, debug: DebugMap | None, name: str) -> InputError:
    near = get_close_matches(name, known_names(file.plan, debug), n=3, cutoff=0.4)
    step = f"is it one of {', '.join(near)}?" if near else "see `hjgc inspect --launches`"
    if debug is None:
        step = f"the plan has no debug section, so only names of launches are known; {step}"
    return InputError(
        file.path, f"expected a launch, or an ONNX node of one, found none called {name!r}", next_step=step
    )


def _head(file: PlanFile, debug: DebugMap | None, predicted: Prediction) -> dict[str, Any]:
    chip = predicted.chip
    return {
        "file": {"path": str(file.path), "bytes": file.path.stat().st_size},
        "hjgc": file.plan.producer.hjgc,
        "model": file.plan.model.name,
        "targets": list(file.plan.targets),
        "missing": list(STRIPPED) if debug is None else [],
        "prediction": {
            "target": predicted.target,
            "chip": None if chip is None else chip.name,
            "why_not": predicted.why_not,
        },
    }


def _phase(phase: Phase) -> dict[str, Any]:
    """How much of each way to run the phase is replayed."""
    return {
        "name": phase.name,
        "schedules": [
            {
                "name": schedule.name,
                "segments": len(schedule.segments),
                "launches": sum(len(segment.launches) for segment in schedule.segments),
                "dynamic_launches": sum(len(s.launches) for s in schedule.segments if isinstance(s, DynamicSegment)),
            }
            for schedule in phase.schedules
        ],
    }


def _launches(seen: View, found: Sequence[Found], predicted: Prediction) -> Iterator[dict[str, Any]]:
    """What was found in one phase."""
    mine = [entry for entry in found if entry.phase is seen.phase]
    runs, reasons = verdicts(seen.phase), _reasons(seen, {entry.number for entry in mine})
    for entry in mine:
        yield {
            **_found(seen, entry, predicted),
            "segments": runs.get(entry.number, []),
            "causes": reasons.get(entry.number, []),
        }


def _reasons(seen: View, numbers: set[int]) -> dict[int, list[dict[str, Any]]]:
    """Why each of these launches is dynamic, as the first schedule that cuts there has it."""
    reasons: dict[int, list[dict[str, Any]]] = {}
    for schedule in seen.phase.schedules:
        for segment in schedule.segments:
            if isinstance(segment, DynamicSegment):
                new = [number for number in segment.launches if number in numbers and number not in reasons]
                for cause in _causes(seen, segment, new):
                    reasons.setdefault(cause["launch"], []).append(cause)
    return reasons


def _dynamic(seen: View, predicted: Prediction) -> Iterator[dict[str, Any]]:
    for schedule in seen.phase.schedules:
        for place, segment in enumerate(schedule.segments):
            if isinstance(segment, DynamicSegment):
                spent = spending(seen.plan, seen.phase, segment.launches, predicted.chip)
                yield {
                    "phase": seen.phase.name,
                    "schedule": schedule.name,
                    "segment": place,
                    "launches": list(segment.launches),
                    "causes": _causes(seen, segment, segment.launches),
                    "cost": spent.as_data(),
                }


def _causes(seen: View, segment: DynamicSegment, numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "launch": cause.number,
            "name": seen.phase.launches[cause.number].name,
            "op": seen.phase.launches[cause.number].op,
            "code": cause.code.value,
            "sentence": cause.code.sentence,
            "chain": [{"kind": link.kind, "name": link.name} for link in cause.chain],
            "change": remedy(seen.phase.launches[cause.launch], cause),
        }
        for cause in causes(seen, segment, numbers)
    ]


def _found(seen: View, found: Found, predicted: Prediction) -> dict[str, Any]:
    launch = seen.phase.launches[found.number]
    return {
        "phase": seen.phase.name,
        "number": found.number,
        "name": launch.name,
        "op": launch.op,
        "matched": list(found.nodes),
        "nodes": list(seen.nodes(found.number)),
        "kernels": kernels(seen.plan, seen.phase, found.number),
        "cost": spending(seen.plan, seen.phase, (found.number,), predicted.chip).as_data(),
    }
