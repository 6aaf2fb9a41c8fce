"""How far are predicted times of launches from what they take on this card?

    measure_launches.py PLAN [ROWS ...]     the plan's weights beside it; prints microseconds by kind of launch

Launches of one kind, a layer's each, run one behind the other while the device is still busy with a whole step, so that
the host is ahead; one row after 512 cached tokens, and 128 rows of a prompt or those given. Beside what is predicted
stand its parts: moving bytes, and computing. The last line of each is the median error over all launches.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from hjgc.plan_format.structs import Phase, Plan, StaticSegment
from hjgc.runtime.opening import open_session
from hjgc.tools.costs import launch_cost
from hjgc.tools.prediction import launch_seconds, prediction, representative

LAYER = re.compile(r"^.*?\.\d+\.")
ROUNDS = 15
SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def kinds(phase: Phase) -> dict[str, list[int]]:
    """The launches of the default schedule by what their names say behind the layer, and their op."""
    schedule = next(schedule for schedule in phase.schedules if schedule.name == "default")
    numbers = [n for segment in schedule.segments if isinstance(segment, StaticSegment) for n in segment.launches]
    found: dict[str, list[int]] = {}
    for number in numbers:
        launch = phase.launches[number]
        found.setdefault(f"{LAYER.sub('', launch.name)} ({launch.op})", []).append(number)
    return found


def took(backend: Any, phase: str, whole: Sequence[int], part: Sequence[int], place: tuple[int, int]) -> float:
    """Microseconds of each launch of the part, at the median, at so many rows after so many."""
    times: list[float] = []
    rows, start = place
    for _ in range(ROUNDS):
        backend.run(phase, whole, rows)
        backend.write_parameters({"start": start, "length": rows})  # the step has moved on by a token
        first = backend.mark()
        backend.run(phase, part, rows)
        second = backend.mark()
        times.append(backend.milliseconds(first, second) * 1e3 / len(part))
        backend.drop_marks([first, second])
    return median(times)


def show(backend: Any, plan: Plan, phase: Phase, rows: int, start: int) -> None:
    chip = prediction(plan).chip
    assert chip is not None
    ids = np.random.default_rng(0).integers(0, plan.model.vocab_size, start + rows).tolist()
    backend.write_history(0, ids)
    backend.write_parameters({**SAMPLING, "start": start, "length": rows})
    found = kinds(phase)
    whole = sorted(number for numbers in found.values() for number in numbers)
    errors: list[float] = []
    print(f"{phase.name}, {rows} rows after {start}")
    for kind, numbers in found.items():
        # All of a kind cost the same: the layers of a model are alike.
        cost = launch_cost(plan, phase, phase.launches[numbers[0]], tokens=rows, start=start)
        predicted, measured = launch_seconds(cost, chip) * 1e6, took(backend, phase.name, whole, numbers, (rows, start))
        errors += [predicted / measured - 1] * len(numbers)
        parts = f"bytes {cost.bytes / chip.read * 1e6:6.2f}  operations {cost.flops / chip.matrix * 1e6:6.2f}"
        print(
            f"  {kind:36} x {len(numbers):3}  {parts}  predicted {predicted:7.2f}  measured {measured:7.2f}"
            f"  {errors[-1]:+.0%}"
        )
    print(f"  median error {median(map(abs, errors)):.1%}", flush=True)


def main(path: str, rows: Sequence[int]) -> None:
    with open_session(path, device="cuda", capture=False) as session:
        for phase in session.plan.phases:
            usual, start = representative(phase)
            for count in rows or (usual,) if usual > 1 else (usual,):
                show(session._backend, session.plan, phase, count, start)


if __name__ == "__main__":
    main(sys.argv[1], tuple(map(int, sys.argv[2:])))
