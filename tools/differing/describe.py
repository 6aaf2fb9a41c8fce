"""What does `hjgc diff` say about two plans, as data that another program may rely on? (`docs/cli.md` describes it.)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Plan
from hjgc.tools.differing.causes import find_causes, followers
from hjgc.tools.differing.kernels import compare_code
from hjgc.tools.differing.launches import compare_launches
from hjgc.tools.differing.rules import OPTION, Rule, broken
from hjgc.tools.differing.sides import Change, Side, aligned
from hjgc.tools.differing.tables import Value, compare, compare_tables, digest
from hjgc.tools.prediction import most_cached, prediction, prompt_seconds, row_range, token_seconds

PROMPTS = (16, 64, 128, 256, 512, 1024, 2048, 4096)
"""Lengths of prompts whose predicted times are compared, and the longest that both plans take in one call."""


def differences(a: Side, b: Side, rules: Sequence[Rule]) -> dict[str, Any]:
    """All of it. Raises InputError for a rule about times where there are none."""
    phases = aligned(a, b)
    times, why_not = _times(a.plan, b.plan)
    changes = (*compare_tables(a, b), *compare_launches(a, b, phases), *compare_code(a.plan, b.plan), *times)
    if not changes and digest(a.plan) != digest(b.plan):
        changes = (Change("other", "plan", "digest", digest(a.plan)[:16], digest(b.plan)[:16]),)
    _check_rules(rules, why_not)
    follows = followers(a, b)
    return {
        "same": not changes,
        "a": {"path": str(a.path), "bytes": a.bytes},
        "b": {"path": str(b.path), "bytes": b.bytes},
        "causes": [
            {"kind": cause.kind, "name": cause.name, "before": cause.before, "after": cause.after}
            for cause in find_causes(a, b, phases, changes)
        ],
        "follows": follows,
        "aligned": [
            {
                "phase": phase.name,
                "by": "nodes" if phase.a.debug and phase.b.debug else "names",
                "pairs": len(phase.pairs),
                "only_a": len(phase.only_a),
                "only_b": len(phase.only_b),
            }
            for phase in phases
        ],
        "changes": [
            {"area": c.area, "item": c.item, "field": c.field, "before": c.before, "after": c.after} for c in changes
        ],
        "rules": [{"rule": rule.text, "broken": list(broken(rule, changes))} for rule in rules],
        "notes": [*_notes(a, b), *([f"predicted times are not compared: {why_not}"] if why_not and changes else [])],
    }


def _check_rules(rules: Sequence[Rule], why_not: str) -> None:
    """A rule that cannot be checked must not pass."""
    for rule in rules:
        if rule.area == "time" and why_not:
            raise InputError(OPTION, f"expected predicted times for the rule {rule.text}, found none: {why_not}")


def _notes(a: Side, b: Side) -> Iterator[str]:
    for one in (a, b):
        if one.debug is None:
            yield f"{one.path} has no debug section: its launches are aligned by their names"


def _times(a: Plan, b: Plan) -> tuple[tuple[Change, ...], str]:
    """In milliseconds, where both are predicted for one chip; and why not, if not."""
    one, other = prediction(a), prediction(b)
    for side in (one, other):
        if side.chip is None:
            return (), side.why_not
    if one.chip != other.chip:
        return (), f"{one.target} and {other.target} are different chips"
    return tuple(compare("time", "predicted", *_both(a, b))), ""


def _both(a: Plan, b: Plan) -> tuple[dict[str, Value], dict[str, Value]]:
    """The same tokens and prompts of both, as far as both have such phases."""
    phases = [{phase.name: phase for phase in plan.phases} for plan in (a, b)]
    found: tuple[dict[str, Value], dict[str, Value]] = ({}, {})
    if all("decode" in each for each in phases):
        cached = min(most_cached(each["decode"]) for each in phases)
        for plan, times in zip((a, b), found, strict=True):
            times[f"ms for a token after {cached} cached"] = _milliseconds(plan, None, cached)
    if all("prefill" in each for each in phases):
        low = max(row_range(each["prefill"])[0] for each in phases)
        high = min(row_range(each["prefill"])[1] for each in phases)
        for tokens in sorted({*(n for n in PROMPTS if low <= n < high), high}):
            for plan, times in zip((a, b), found, strict=True):
                times[f"ms for a prompt of {tokens}"] = _milliseconds(plan, tokens, 0)
    return found


def _milliseconds(plan: Plan, prompt: int | None, cached: int) -> float:
    chip = prediction(plan).chip
    assert chip is not None
    seconds = token_seconds(plan, chip, cached) if prompt is None else prompt_seconds(plan, chip, prompt)
    return round(seconds * 1e3, 6)
