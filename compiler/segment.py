"""How is a phase cut: maximal runs of one verdict, once for each way of running it?"""

from __future__ import annotations

from itertools import groupby

from hjgc.compiler.classify import Dynamic, Island, Static, Verdict
from hjgc.compiler.program import Program
from hjgc.plan_format.reasons import Reason
from hjgc.plan_format.structs import CaptureKey, DynamicSegment, Schedule, Segment, StaticSegment


def segment(program: Program, verdicts: tuple[Verdict, ...]) -> tuple[Schedule, ...]:
    """`default` leaves the caller's processor out; `logits_processor` runs all; `prompt_only` stops before the logits
    and exists only where a prompt may come in chunks."""
    ops = [step.op for step in program.steps]
    every = list(range(len(ops)))
    if program.function:
        return (Schedule("default", _cut(program, verdicts, every)),)
    orders = {
        "default": [i for i in every if ops[i] != "caller_logits"],
        "logits_processor": every,
    }
    if any(size.lives == "key" for size in program.sizes):
        orders["prompt_only"] = every[: ops.index("vocabulary_logits")]
    return tuple(Schedule(name, _cut(program, verdicts, order)) for name, order in orders.items())


def _cut(program: Program, verdicts: tuple[Verdict, ...], order: list[int]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for static, run in groupby(order, key=lambda i: isinstance(verdicts[i], Static)):
        launches = tuple(run)
        segments.append(_static(program, launches) if static else _dynamic(verdicts, launches))
    return tuple(segments)


def _static(program: Program, launches: tuple[int, ...]) -> StaticSegment:
    keys = tuple(size.name for size in program.sizes if size.lives == "key")
    return StaticSegment(launches, CaptureKey(keys, program.buckets))


def _dynamic(verdicts: tuple[Verdict, ...], launches: tuple[int, ...]) -> DynamicSegment:
    found = [(i, cause) for i in launches for cause in _causes(verdicts[i])]
    return DynamicSegment(launches, tuple(Reason(i, cause.code, cause.chain) for i, cause in found))


def _causes(verdict: Verdict) -> tuple[Dynamic, ...]:
    match verdict:
        case Island():
            return verdict.causes
        case Dynamic():
            return (verdict,)
        case Static():
            return ()
