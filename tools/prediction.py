"""How long should a launch, a token or a prompt take on a chip, by what each launch must read and compute?

A launch takes the longer of moving its bytes and doing its operations, as its op declares them, a share of the shorter,
since the two overlap only in part, and a fixed time more. That is all: tiles, caches and what overlaps between two
launches are not looked at, so plans that differ in tiles alone have the same prediction, and a poor kernel looks as
good as a fine one. Times are of the device: the host, and functions of the caller's, count as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import Launch, Phase, Plan
from hjgc.tools.costs import Cost, launch_cost


@dataclass(frozen=True)
class Chip:
    """Bytes read and half-precision operations a second, the share of the shorter of the two that the longer does not
    hide, seconds that a launch takes whatever it does, and the bytes of memory there are."""

    name: str
    read: float
    matrix: float
    unhidden: float
    launch: float
    memory: int


CHIPS: Mapping[str, Chip] = {
    "sm_90": Chip("H200", read=4.574e12, matrix=790e12, unhidden=0.6, launch=1.6e-6, memory=150_109_880_320)
}
"""By target, the chip that is predicted for. Of the H200, in docs/benchmarks.md: the most that a kernel was measured to
read; products of 16-bit numbers; the share that fits prompts of 64, 256 and 512 rows; one of 64 chained launches of a
kernel that does next to nothing, inside a graph; what the driver says there is. A chip belongs here once all were
measured on it: other sm_90 chips have less memory bandwidth than this one."""

CONTEXT = 512
"""Cached tokens before the one that a time per token is given for, or as many as the plan holds."""
PROMPT = 128
"""Rows of a prompt that its costs are given for, or as many as one call takes."""


@dataclass(frozen=True)
class Prediction:
    """The target and chip that a plan's times are predicted for; or, without a chip, why there are none."""

    target: str = ""
    chip: Chip | None = None
    why_not: str = ""


def prediction(plan: Plan) -> Prediction:
    """For the first of the plan's targets that a chip is known of."""
    for target in plan.targets:
        if target in CHIPS:
            return Prediction(target, CHIPS[target])
    known = ", ".join(f"{target} ({chip.name})" for target, chip in CHIPS.items())
    return Prediction(why_not=f"speeds are known of {known}, the plan is for {', '.join(plan.targets)}")


def launch_seconds(cost: Cost, chip: Chip) -> float:
    """What one launch on the device takes."""
    moving, computing = cost.bytes / chip.read, cost.flops / chip.matrix
    return max(moving, computing) + chip.unhidden * min(moving, computing) + chip.launch


def step_seconds(plan: Plan, phase: Phase, chip: Chip, *, tokens: int, start: int) -> float:
    """What one call of the phase's schedule `default` takes, without functions of the caller's."""
    target = prediction(plan).target
    costs = (launch_cost(plan, phase, one, tokens=tokens, start=start, target=target) for one in _on_device(phase))
    return sum(launch_seconds(cost, chip) for cost in costs)


def token_seconds(plan: Plan, chip: Chip, cached: int) -> float:
    """What decoding one token takes after so many."""
    return step_seconds(plan, plan.phase("decode"), chip, tokens=1, start=cached)


def prompt_seconds(plan: Plan, chip: Chip, tokens: int) -> float:
    """What a prompt takes that fits one call, to its first token."""
    return step_seconds(plan, plan.phase("prefill"), chip, tokens=tokens, start=0)


def most_cached(phase: Phase) -> int:
    """CONTEXT, or as many tokens as may be cached."""
    return min(CONTEXT, next((size.high for size in phase.sizes if size.name == "start"), 0))


def row_range(phase: Phase) -> tuple[int, int]:
    """The fewest and the most rows of one call."""
    return next(((size.low, size.high) for size in phase.sizes if size.name == "tokens"), (1, 1))


def representative(phase: Phase) -> tuple[int, int]:
    """Rows and cached tokens that costs of the phase are given for: part of a prompt, or one token."""
    low, high = row_range(phase)
    if (low, high) == (1, 1):
        return 1, most_cached(phase)
    return max(low, min(PROMPT, high)), 0


def _on_device(phase: Phase) -> list[Launch]:
    numbers = [number for segment in phase.schedule().segments for number in segment.launches]
    return [phase.launches[number] for number in numbers if not all_ops()[phase.launches[number].op].host]
