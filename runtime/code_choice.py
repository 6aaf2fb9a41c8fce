"""Which code serves this chip, what must be built before it does, and what behind the requests?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hjgc.plan_format.chips import PORTABLE, chip_number
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.just_in_time import Why
from hjgc.runtime.retarget import for_chip, without_code

Trust = Literal["plan", "templates"]
"""Whose device code is run: the plan's, or only what is built from the templates installed with hjgc."""


@dataclass(frozen=True)
class CodeChoice:
    """`plan` is the file's, with further targets and variants where they must be built. It is served with the code of
    `target`: first `now` is built, for the reason `why`; behind the requests `later`, which are those of the target
    `better`. `words` say to a person what is unusual about this."""

    plan: Plan
    target: str
    words: str = ""
    why: Why | None = None
    now: tuple[int, ...] = ()
    better: str | None = None
    later: tuple[int, ...] = ()


def choose_code(plan: Plan, chip: str, *, asked: str | None, trust: Trust, strict: bool) -> CodeChoice:
    """For a GPU that is a `chip`. `asked` is the target that the user named, if it was one. Raises NoKernels,
    and RunError where building is not allowed."""
    target = asked or chip
    if trust == "templates":
        return _rebuilt(plan, target)
    if target in plan.targets:
        return CodeChoice(plan, target, "" if target == chip else f"{target} was asked for on {chip}")
    words = f"the plan has no code for {chip}"
    if strict:
        raise RunError(
            f"expected a plan with code for {chip}, since builds that were not planned are not allowed (strict), found "
            f"{', '.join(plan.targets)}: every variant would be built ({Why.UNKNOWN_CHIP}); compile with "
            f"--target {chip}"
        )
    derived, ahead = for_chip(plan, chip)
    if PORTABLE in plan.targets and chip_number(chip) >= chip_number(PORTABLE):
        return CodeChoice(derived, PORTABLE, words, better=chip, later=ahead)
    return CodeChoice(derived, chip, words, Why.UNKNOWN_CHIP, ahead)


def _rebuilt(plan: Plan, target: str) -> CodeChoice:
    words = "only code built from installed templates is trusted"
    if target in plan.targets:
        bare, built = without_code(plan, target)
        return CodeChoice(bare, target, words, Why.REBUILD, built)
    derived, ahead = for_chip(plan, target)
    bare, _ = without_code(derived, target)
    return CodeChoice(bare, target, words, Why.REBUILD, ahead)
