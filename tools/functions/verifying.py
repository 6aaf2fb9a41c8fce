"""Does a plan that is a function give what the ONNX model gives, at a few sizes or for somebody's inputs?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hjgc.plan_format import PlanFile
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.fingerprint import file_digest
from hjgc.plan_format.structs import Plan
from hjgc.runtime.call_inputs import CallInputs
from hjgc.runtime.function import PHASE, Function
from hjgc.runtime.opening import Opened, start_function
from hjgc.tools.calling import read_arrays
from hjgc.tools.functions.comparing import TOLERANCES, Compared, coarsest, compare, different, tolerance_of
from hjgc.tools.functions.made_up import WORDS, make_inputs, spread_sizes
from hjgc.tools.functions.ort import OrtFunction

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is compared: somebody's inputs (`feed`), or made-up ones of these and other sizes."""

    against: Path
    feed: Path | None
    sizes: Mapping[str, int]
    tolerance: float | None
    seed: int
    device: str | None


@dataclass(frozen=True)
class Call:
    """The inputs of one call, and the sizes that they have."""

    sizes: Mapping[str, int]
    inputs: Mapping[str, Any]


def verify_function(opened: Opened, asked: Asked, tell: Tell) -> dict[str, Any]:
    """What goes into the result of `hjgc verify`: a run for each call, up to the first that differs. Raises
    InputError, PlanError, RunError for what cannot be compared; closes the plan file."""
    plan = opened.file.plan
    calls = list(_calls(plan, asked))
    notes = list(_notes(opened.file, asked.against))  # before the plan file is closed
    tell("load the ONNX model")
    judge = OrtFunction(asked.against)
    _check_outputs(plan, judge, asked.against)
    tell("load the plan")
    with start_function(opened, device=asked.device, capture=False) as function:
        runs = list(_runs(function, judge, calls, asked.tolerance, tell))
        device = function.report()["target"]
    return {
        "against": str(asked.against),
        "device": device,
        "feed": None if asked.feed is None else str(asked.feed),
        "made_up": WORDS if asked.feed is None else None,
        "seed": asked.seed,
        "tolerance": asked.tolerance,
        "tolerances": TOLERANCES,
        "computed_in": coarsest(plan.phase(PHASE)),
        "calls": [_run(call, compared) for call, compared in runs],
        "equal": all(different(compared) is None for _, compared in runs),
        "notes": [*notes, *_close_calls(runs)],
    }


def _calls(plan: Plan, asked: Asked) -> Iterator[Call]:
    phase = plan.phase(PHASE)
    if asked.feed is None:
        for sizes in spread_sizes(phase, asked.sizes):
            yield Call(sizes, make_inputs(phase, sizes, asked.seed))
        return
    inputs = read_arrays(asked.feed)
    rows, _ = CallInputs(phase).check(inputs)
    yield Call(dict(zip((size.name for size in phase.sizes), rows, strict=True)), inputs)


def _runs(
    function: Function, judge: OrtFunction, calls: Sequence[Call], tolerance: float | None, tell: Tell
) -> Iterator[tuple[Call, list[Compared]]]:
    least = tolerance_of(coarsest(function.plan.phase(PHASE)))
    for call in calls:
        tell(f"call with {spell_sizes(call.sizes)}")
        expected = judge(call.inputs)
        compared = compare(function(call.inputs), expected, least=least, tolerance=tolerance)
        yield call, compared
        if different(compared):
            return


def spell_sizes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in sizes.items()) or "fixed sizes"


def _check_outputs(plan: Plan, judge: OrtFunction, against: Path) -> None:
    """Raises InputError for a model that does not take and give what the plan takes and gives."""
    phase = plan.phase(PHASE)
    for what, ports, others in (
        ("inputs", phase.arguments, judge.inputs),
        ("outputs", phase.results, judge.outputs),
    ):
        wanted, found = (sorted(port.name for port in some) for some in (ports, others))
        if wanted != found:
            problem = f"expected a model with the plan's {what} {', '.join(wanted)}, found {', '.join(found)}"
            raise InputError(against, problem, next_step="name the file that the plan was compiled from")


def _notes(file: PlanFile, against: Path) -> Iterator[str]:
    if against.is_file() and file_digest(against) != file.plan.producer.onnx_sha256:
        yield f"{against} is not the file that the plan was compiled from; its values are matched by name"
    segments = file.plan.phase(PHASE).schedules[0].segments
    codes = {str(reason.code) for segment in segments for reason in getattr(segment, "reasons", ())}
    if "RANDOM" in codes:
        yield "the model draws random numbers: what comes of them may be another each time"


def _close_calls(runs: Sequence[tuple[Call, Sequence[Compared]]]) -> Iterator[str]:
    """What may be behind it where nothing differs but what must be equal."""
    wrong = [one for _, compared in runs for one in compared if not one.equal]
    if wrong and all(one.differ and not one.tolerance for one in wrong):
        yield "whole numbers chosen among rounded ones (ArgMax, TopK) differ where two of these are nearly the same"


def _run(call: Call, compared: Sequence[Compared]) -> dict[str, Any]:
    return {
        "sizes": dict(call.sizes),
        "equal": different(compared) is None,
        "outputs": [_output(one) for one in compared],
    }


def _output(one: Compared) -> dict[str, Any]:
    first = one.first
    return {
        "name": one.name,
        "dtype": one.dtype,
        "shape": list(one.shape),
        "equal": one.equal,
        "error": _number(one.error),
        "magnitude": one.magnitude,
        "relative": _number(one.relative),
        "tolerance": one.tolerance,
        "differ": one.differ,
        "first": first and {"index": list(first.index), "found": first.found, "expected": first.expected},
        "problem": one.problem or None,
    }


def _number(error: float) -> float | None:
    """JSON has no infinity: None stands for what is not a number on one side."""
    return error if math.isfinite(error) else None
