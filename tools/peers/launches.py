"""How long does each kind of launch take on the device, at the sizes that its costs are given for?

Launches of one kind, a layer's each, run one behind the other while the device is still busy with a whole step, so
that the host is ahead of it. They do not overlap, as they do with their neighbours in a step: each takes a microsecond
or two more here.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from hjgc.plan_format.errors import HjgcError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import Phase, Plan, StaticSegment
from hjgc.runtime.request import SAMPLING
from hjgc.tools.layers import layer_of
from hjgc.tools.prediction import representative

ROUNDS = 15


def time_launches(plan: Plan, backend: Any) -> list[dict[str, Any]]:
    """For each phase and kind its launches and the microseconds of one, at the median of some rounds. Raises HjgcError
    for a device whose launches cannot be timed."""
    if not hasattr(backend, "mark"):
        raise HjgcError(f"expected a GPU to time launches on, found {backend.name}")
    return [row for phase in plan.phases for row in _phase(plan, phase, backend)]


def kinds(phase: Phase) -> dict[tuple[str, str], list[int]]:
    """The device's launches in static segments of the default schedule, by what their names say behind the layer, and
    their op."""
    segments = phase.schedule().segments
    numbers = [n for segment in segments if isinstance(segment, StaticSegment) for n in segment.launches]
    found: dict[tuple[str, str], list[int]] = {}
    for number in numbers:
        launch = phase.launches[number]
        if not all_ops()[launch.op].host:
            found.setdefault((layer_of(launch.name)[1], launch.op), []).append(number)
    return found


def _phase(plan: Plan, phase: Phase, backend: Any) -> list[dict[str, Any]]:
    rows, start = representative(phase)
    ids = np.random.default_rng(0).integers(0, plan.model.vocab_size, start + rows).tolist()
    backend.write_history(0, ids)
    found = kinds(phase)
    whole = sorted(number for numbers in found.values() for number in numbers)
    place = {"phase": phase.name, "rows": rows, "start": start}
    return [
        {**place, "kind": kind, "op": op, "launches": numbers, "measured_us": _took(backend, place, whole, numbers)}
        for (kind, op), numbers in found.items()
    ]


def _took(backend: Any, place: dict[str, Any], whole: Sequence[int], part: Sequence[int]) -> float:
    """Microseconds of each launch of the part."""
    phase, rows = place["phase"], place["rows"]
    fields = {**SAMPLING, "start": place["start"], "length": rows}
    times: list[float] = []
    for _ in range(ROUNDS):
        backend.write_parameters(fields)
        backend.run(phase, whole, rows)
        backend.write_parameters(fields)  # the step has moved on by a token
        first = backend.mark()
        backend.run(phase, part, rows)
        second = backend.mark()
        times.append(backend.milliseconds(first, second) * 1e3 / len(part))
        backend.drop_marks([first, second])
    return median(times)
