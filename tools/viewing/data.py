"""What does the page of `hjgc view` know about a plan?

Tables, and rows of numbers into them: a plan of a hundred thousand launches must load in a browser within seconds.
`assets/view.js` reads exactly this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hjgc.plan_format import DebugMap, PlanFile
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import (
    Attribute,
    DynamicSegment,
    HostCall,
    IslandCall,
    Kernel,
    Launch,
    LibraryCall,
    Phase,
    Plan,
    RowsCall,
    Schedule,
    Segment,
    TemplateCall,
    Variant,
)
from hjgc.tools.console import as_data
from hjgc.tools.costs import launch_cost
from hjgc.tools.explaining.describe import explain
from hjgc.tools.explaining.spending import spending
from hjgc.tools.layers import layer_of
from hjgc.tools.prediction import Prediction, launch_seconds, prediction, representative

SPACES = ("buffer", "weight", "constant", "state", "parameters", "value")
ACCESSES = ("read", "write", "read_write")


def page_data(file: PlanFile) -> dict[str, Any]:
    """Everything that is shown of one plan."""
    plan, debug, predicted = file.plan, file.debug(), prediction(file.plan)
    chip, explained = predicted.chip, explain(file)
    return {
        "file": {"name": file.path.name, "bytes": file.path.stat().st_size, "sections": file.section_lengths()},
        "hjgc": plan.producer.hjgc,
        "options": dict(plan.producer.options),
        "model": as_data(plan.model),
        "targets": list(plan.targets),
        "dtypes": as_data(plan.dtypes),
        "ledger": as_data(plan.ledger),
        "prediction": {
            "chip": None if chip is None else chip.name,
            "why_not": predicted.why_not,
            "read": None if chip is None else chip.read,
            "matrix": None if chip is None else chip.matrix,
            "launch": None if chip is None else chip.launch,
            "memory": None if chip is None else chip.memory,
        },
        "spaces": list(SPACES),
        "weights": [[w.name, w.dtype, list(w.shape), w.bytes] for w in plan.weights],
        "constants": [[c.name, c.dtype, list(c.shape), c.length] for c in plan.constants],
        "states": [[s.name, s.dtype, list(s.shape), s.bytes, s.kind] for s in plan.states],
        "variants": [_variant(variant) for variant in plan.variants],
        "templates": _templates(file),
        "phases": [_phase(plan, phase, debug, predicted) for phase in plan.phases],
        "dynamic": explained["dynamic"],
        "almost": explained["almost_fired"],
        "lengths": explained["lengths"],
        "missing": explained["missing"],
    }


def _variant(variant: Variant) -> dict[str, Any]:
    built = variant.built
    return {
        "template": variant.template,
        "target": variant.target,
        "axes": dict(sorted(variant.axes.items())),
        "pdl": variant.pdl,
        "built": None
        if built is None
        else {
            "threads": built.threads,
            "shared": built.shared_bytes,
            "registers": built.registers,
            "bytes": built.code.length,
            "sha256": built.code.sha256,
        },
    }


def _templates(file: PlanFile) -> list[dict[str, Any]]:
    text = file.section("templates")
    return [
        {
            "name": template.name,
            "digest": template.digest,
            "axes": list(template.axes),
            "only": template.only,
            "files": [
                [part.name, text[part.offset : part.offset + part.length].decode("utf-8", "replace")]
                for part in template.files
            ],
        }
        for template in file.plan.templates
    ]


def _phase(plan: Plan, phase: Phase, debug: DebugMap | None, predicted: Prediction) -> dict[str, Any]:
    rows, start = representative(phase)
    found = () if debug is None else next((e.launches for e in debug.phases if e.phase == phase.name), ())
    kernels, nodes = _Table(), _Table()
    launches = [_launch(plan, phase, launch, predicted, (rows, start), kernels) for launch in phase.launches]
    for number, launch in enumerate(launches):
        launch.append([nodes.number(name) for name in found[number].nodes] if found else [])
    return {
        "name": phase.name,
        "rows": rows,
        "start": start,
        "sizes": [[size.name, size.low, size.high, size.lives] for size in phase.sizes],
        "buffers": [
            [b.name, b.dtype, [spell(axis) for axis in b.shape], b.bytes, b.offset, b.first, b.last]
            for b in phase.buffers
        ],
        "values": [[value.name, value.type, [], 0] for value in phase.values],
        "schedules": [_schedule(plan, phase, schedule, predicted) for schedule in phase.schedules],
        "kernels": kernels.entries,
        "nodes": nodes.entries,
        "launches": launches,
        "folds": _folds(phase.launches, [launch[3] for launch in launches]),
    }


class _Table:
    """Entries, each once."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, entry: Any) -> int:
        key = entry if isinstance(entry, str) else json.dumps(entry)
        if key not in self._numbers:
            self._numbers[key] = len(self.entries)
            self.entries.append(entry)
        return self._numbers[key]


def _launch(
    plan: Plan, phase: Phase, launch: Launch, predicted: Prediction, call: tuple[int, int], kernels: _Table
) -> list[Any]:
    """[name, op, operands, kernels, attributes, flops, bytes, microseconds]; an operand is [role, access, space,
    index], kernels a number in the phase's table. A launch of the host's costs the device nothing."""
    host = all_ops()[launch.op].host
    cost = None if host else launch_cost(plan, phase, launch, tokens=call[0], start=call[1], target=predicted.target)
    seconds = None if cost is None or predicted.chip is None else launch_seconds(cost, predicted.chip)
    return [
        launch.name,
        launch.op,
        [[o.role, ACCESSES.index(o.access), SPACES.index(o.space), o.index] for o in launch.operands],
        kernels.number([[target, _calls(kernel)] for target, kernel in sorted(launch.kernels.items())]),
        {name: _number(value) for name, value in sorted(launch.attributes.items())},
        0 if cost is None else cost.flops,
        0 if cost is None else cost.bytes,
        None if seconds is None else round(seconds * 1e6, 3),
    ]


def _number(value: Attribute) -> Attribute:
    """JSON knows no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _calls(kernel: Kernel) -> str | list[list[Any]]:
    """Words for what is no template's; else [most rows or null, variant, grid] for each range."""
    match kernel:
        case RowsCall():
            return [[entry.high, entry.call.variant, _grid(entry.call)] for entry in kernel.ranges]
        case TemplateCall():
            return [[None, kernel.variant, _grid(kernel)]]
        case IslandCall():
            return f"ONNX Runtime, island {kernel.island}"
        case HostCall():
            return f"the caller's {kernel.callback}"
        case LibraryCall():
            return f"{kernel.routine} of {kernel.library}"
        case _:
            return "the op's reference"


def _grid(call: TemplateCall) -> str:
    return " x ".join(spell(axis) for axis in call.grid)


def _schedule(plan: Plan, phase: Phase, schedule: Schedule, predicted: Prediction) -> dict[str, Any]:
    return {"name": schedule.name, "segments": [_segment(plan, phase, s, predicted) for s in schedule.segments]}


def _segment(plan: Plan, phase: Phase, segment: Segment, predicted: Prediction) -> dict[str, Any]:
    spent = spending(plan, phase, segment.launches, predicted.chip)
    shown = {
        "launches": _runs(segment.launches),
        "count": len(segment.launches),
        "flops": spent.flops,
        "bytes": spent.bytes,
        "us": None if spent.seconds is None else round(spent.seconds * 1e6, 3),
        "to_host": spent.to_host,
        "to_device": spent.to_device,
    }
    if isinstance(segment, DynamicSegment):
        return {"verdict": "dynamic", **shown}
    return {"verdict": "static", "sizes": list(segment.key.sizes), "buckets": list(segment.key.buckets), **shown}


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """[first, last] of each run without a gap."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1), len(numbers)]
    return [[numbers[first], numbers[end - 1]] for first, end in pairwise(cuts)]


def _folds(launches: Sequence[Launch], kernels: Sequence[int]) -> list[list[int]]:
    """[first launch, launches of a layer, layers] wherever layers that run one after the other are alike."""
    layers: list[list[int]] = []
    numbers: list[int] = []
    for number, launch in enumerate(launches):
        layer, _ = layer_of(launch.name)
        if layers and numbers[-1] == layer:
            layers[-1].append(number)
        else:
            layers.append([number])
            numbers.append(layer)
    folds: list[list[int]] = []
    before: object = None
    for layer, members in zip(numbers, layers, strict=True):
        alike = [(launches[number].op, kernels[number]) for number in members]
        if layer >= 0 and alike == before:
            folds[-1][2] += 1
        elif layer >= 0:
            folds.append([members[0], len(members), 1])
        before = alike if layer >= 0 else None
    return [fold for fold in folds if fold[2] > 1]
