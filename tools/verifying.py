"""Does a plan compute what the ONNX model computes, at every step?

Both read the same prompt and then the judge's greedy tokens, so that one different choice does not make all later steps
different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format import PlanFile
from hjgc.plan_format.errors import InputError, PlanError
from hjgc.runtime.backend import Backend
from hjgc.runtime.functions import function_names
from hjgc.runtime.request import SAMPLING
from hjgc.runtime.route import token_range
from hjgc.tools.judge import Judge

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}
"""Of logits, by the plan's compute dtype: float16 keeps 11 bits of a number, bfloat16 8."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """Tokens `ids` behind `start` others, and the schedule of the plan that reads them."""

    phase: str
    schedule: str
    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class StepResult:
    """`error` is the largest absolute difference of the logits, `token` the plan's greedy choice, `judge_token` the
    judge's, `shortfall` how far below the judge's best its logit of the plan's choice is: 0 where both choose alike."""

    step: Step
    error: float
    token: int
    judge_token: int
    shortfall: float

    def equal(self, tolerance: float) -> bool:
        """Within the tolerance; the choice may differ only between logits that lie within twice that."""
        return self.error <= tolerance and self.shortfall <= 2 * tolerance


@dataclass(frozen=True)
class Run:
    """One prompt and its answer, ending at the first step that differs. `steps` are all that were run."""

    prompt: int
    steps: tuple[Step, ...]
    results: tuple[StepResult, ...]

    def first_different(self, tolerance: float) -> StepResult | None:
        return next((result for result in self.results if not result.equal(tolerance)), None)


def check_comparable(file: PlanFile) -> None:
    """Raises PlanError for a plan without the target cpu, and for one that calls what only its user has."""
    if "cpu" not in file.plan.targets:
        found = ", ".join(file.plan.targets)
        raise PlanError(
            file.path,
            f"expected a plan for cpu, found one for {found}",
            field="$.targets",
            next_step="compile it with --target cpu to compare it with the ONNX model",
        )
    if names := function_names(file.plan):
        raise PlanError(
            file.path,
            f"expected a plan without functions of the caller's, found one that calls {', '.join(names)}",
            field="$.phases",
            next_step="compare a plan of the model without its HostFunction nodes",
        )


def open_backend(file: PlanFile, root: Path) -> Backend:
    """The CPU, with the plan's weights. Raises PlanError for a plan that cannot be compared."""
    check_comparable(file)
    from hjgc.runtime.backends.cpu import CpuBackend

    return CpuBackend(file, root)


def compare(
    file: PlanFile,
    backend: Backend,
    judge: Judge,
    *,
    lengths: Sequence[int],
    steps: int,
    tolerance: float,
    seed: int,
    tell: Tell,
) -> Iterator[Run]:
    """A run for each prompt length, of random tokens. Raises InputError for lengths that the plan cannot take."""
    for length in lengths:
        tell(f"prompt of {length}")
        prompt = np.random.default_rng([seed, length]).integers(0, file.plan.model.vocab_size, length).tolist()
        yield _run(file, backend, judge, prompt, steps, tolerance)


def _run(file: PlanFile, backend: Backend, judge: Judge, prompt: list[int], decode: int, tolerance: float) -> Run:
    judge.reset()
    steps = list(prompt_steps(file, prompt))
    for step in steps[:-1]:
        judge.step(step.ids)
        run_step(file, backend, step)
    results = [_on_both(file, backend, judge, steps[-1])]
    while results[-1].equal(tolerance) and len(results) <= min(decode, file.plan.model.context - len(prompt)):
        step = Step("decode", "default", (results[-1].judge_token,), judge.length)
        steps.append(step)
        results.append(_on_both(file, backend, judge, step))
    return Run(len(prompt), tuple(steps), tuple(results))


def _on_both(file: PlanFile, backend: Backend, judge: Judge, step: Step) -> StepResult:
    expected = judge.step(step.ids)
    run_step(file, backend, step)
    found = backend.read_logits()
    token, best = int(found.argmax()), int(expected.argmax())
    return StepResult(step, largest_error(found, expected), token, best, float(expected[best] - expected[token]))


def largest_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest absolute difference; infinite where one of them is not a number."""
    with np.errstate(invalid="ignore"):
        errors = np.where(found == expected, 0.0, np.abs(found.astype(np.float64) - expected.astype(np.float64)))
    return float(np.where(np.isnan(errors), np.inf, errors).max(initial=0.0))


def prompt_steps(file: PlanFile, prompt: Sequence[int]) -> Iterator[Step]:
    """The prompt in as few parts as its phase takes: all but the last fill the cache only."""
    plan = file.plan
    low, high = token_range(plan.phase("prefill"))
    if not low <= len(prompt) <= plan.model.context:
        raise InputError(
            "--prompt-lengths", f"expected {low} to {plan.model.context} for this plan, found {len(prompt)}"
        )
    start = 0
    while len(prompt) - start > high:
        left = len(prompt) - start
        size = high if left - high >= low else left - low
        yield Step("prefill", "prompt_only", tuple(prompt[start : start + size]), start)
        start += size
    yield Step("prefill", "default", tuple(prompt[start:]), start)


def run_step(file: PlanFile, backend: Backend, step: Step) -> None:
    prepare_step(backend, step)
    backend.run(step.phase, schedule_launches(file, step), len(step.ids))


def prepare_step(backend: Backend, step: Step) -> None:
    """Tokens and parameters of a greedy step."""
    backend.write_history(step.start, step.ids)
    backend.write_parameters({**SAMPLING, "start": step.start, "length": len(step.ids)})


def schedule_launches(file: PlanFile, step: Step) -> list[int]:
    phase = file.plan.phase(step.phase)
    schedule = next((entry for entry in phase.schedules if entry.name == step.schedule), None)
    if schedule is None:
        raise PlanError(file.path, f"expected a schedule {step.schedule!r}, found none", field=f"phase {phase.name}")
    return [launch for segment in schedule.segments for launch in segment.launches]
