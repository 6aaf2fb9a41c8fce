"""Which prompt lengths run without a graph, or without code built ahead, and why?

Two rules of the format say where graphs are missing: the next bucket holds at most twice as many rows and two more, so
every length from half the first bucket on has one; and the last bucket is the most rows of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hjgc.plan_format.structs import Kernel, Phase, Plan, RowsCall, StaticSegment, TemplateCall
from hjgc.tools.prediction import row_range

How = Literal["plain", "parts", "not_built"]


@dataclass(frozen=True)
class Lengths:
    """Prompts of `low` to `high` tokens: `plain`, launch by launch; in `parts`; or with code for `target` that was
    `not_built` ahead."""

    how: How
    low: int
    high: int
    target: str
    why: str
    change: str


def lengths(plan: Plan) -> tuple[Lengths, ...]:
    """In the order: too short for a graph, too long for one call, without code."""
    prompt = next((phase for phase in plan.phases if phase.name == "prefill"), None)
    if prompt is None:
        return ()
    return (*_plain(plan, prompt), *_parts(plan, prompt), *_not_built(plan, prompt))


def _plain(plan: Plan, phase: Phase) -> Iterator[Lengths]:
    low, _ = row_range(phase)
    segments = [segment for schedule in phase.schedules for segment in schedule.segments]
    first = max((s.key.buckets[0] for s in segments if isinstance(s, StaticSegment)), default=1)
    shortest = -(-first // 2)
    if shortest > low:
        why = f"the smallest graph is for {first} tokens and would be over half empty{_option(plan)}"
        yield Lengths("plain", low, shortest - 1, "", why, f"compile with --prompt {low}:{_high(plan, phase)}")


def _parts(plan: Plan, phase: Phase) -> Iterator[Lengths]:
    _, high = row_range(phase)
    if high < plan.model.context:
        why = f"one call takes up to {high} tokens{_option(plan)}; each part has a graph of its own"
        change = f"compile with --prompt 1:N, N up to {plan.model.context}"
        yield Lengths("parts", high + 1, plan.model.context, "", why, change)


def _not_built(plan: Plan, phase: Phase) -> Iterator[Lengths]:
    low, high = row_range(phase)
    for target in plan.targets:
        spans = [
            span
            for launch in phase.launches
            if target in launch.kernels
            for span in _unbuilt(plan, launch.kernels[target], low, high)
        ]
        for first, last in _joined(spans):
            served = (
                f"until they are, such a prompt runs in parts of up to {first - 1}"
                if first > low
                else "no request is served before they are"
            )
            why = f"some kernels for {target} were not built ahead{_option(plan)}; {served}"
            yield Lengths("not_built", first, last, target, why, f"compile with --prompt 1:{last}")


def _unbuilt(plan: Plan, kernel: Kernel, low: int, high: int) -> Iterator[tuple[int, int]]:
    if isinstance(kernel, TemplateCall) and plan.variants[kernel.variant].built is None:
        yield low, high
    if isinstance(kernel, RowsCall):
        for before, entry in zip((None, *kernel.ranges), kernel.ranges, strict=False):
            if plan.variants[entry.call.variant].built is None:
                yield low if before is None else before.high + 1, entry.high


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few spans as can be."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def _option(plan: Plan) -> str:
    asked = plan.producer.options.get("prompt")
    return f" (compiled with --prompt {asked})" if asked else ""


def _high(plan: Plan, phase: Phase) -> str:
    """What --prompt ended at."""
    return plan.producer.options.get("prompt", "").partition(":")[2] or str(row_range(phase)[1])
