"""Which changes break a rule of `--fail-on`?

A rule is an area, broken by any change of it; or `ledger` or `time` with how much larger any number of it may be:
`segments,ledger+5%,time+3%`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hjgc.plan_format.errors import InputError
from hjgc.tools.differing.sides import Change

OPTION = "--fail-on"
AREAS = (
    *("producer", "model", "targets", "dtypes", "weights", "states", "sizes", "ledger", "segments", "buckets"),
    *("launches", "provenance", "variants", "templates", "code", "phases", "memory", "edges", "time", "other"),
)
"""What a change may be of."""
GROWING = ("ledger", "time")
RULE = re.compile(r"([a-z]+)(?:\+(\d{1,6}(?:\.\d{1,6})?)%)?", re.ASCII)


@dataclass(frozen=True)
class Rule:
    """`percent`: how much any number of the area may grow; None: it may not change."""

    text: str
    area: str
    percent: float | None


def parse(words: str) -> tuple[Rule, ...]:
    """Rules with commas between them. Raises InputError that names the wrong one."""
    return tuple(_parse(word.strip()) for word in words.split(","))


def _parse(word: str) -> Rule:
    found = RULE.fullmatch(word)
    if found is None or found[1] not in AREAS:
        raise InputError(OPTION, f"expected rules like segments,ledger+5%,time+3%, found {word!r}", next_step=_known())
    area, percent = found[1], found[2]
    if percent is not None and area not in GROWING:
        raise InputError(OPTION, f"expected a percentage for {' or '.join(GROWING)} alone, found {word!r}")
    return Rule(word, area, None if percent is None else float(percent))


def _known() -> str:
    return f"areas are {', '.join(AREAS)}"


def broken(rule: Rule, changes: Sequence[Change]) -> tuple[str, ...]:
    """A sentence for each change that breaks the rule."""
    concerned = [change for change in changes if change.area == rule.area]
    if rule.percent is None:
        return tuple(f"{change.item} {change.field}: {change.before} -> {change.after}" for change in concerned)
    return tuple(_growth(change) for change in concerned if _grew(change, rule.percent))


def _grew(change: Change, percent: float) -> bool:
    """Something where there was nothing has grown past any percentage."""
    before, after = _number(change.before), _number(change.after)
    return after > before * (1 + percent / 100)


def _growth(change: Change) -> str:
    before, after = _number(change.before), _number(change.after)
    grown = f" (+{100 * (after / before - 1):.1f} %)" if before else ""
    return f"{change.item} {change.field}: {change.before} -> {change.after}{grown}"


def _number(value: str | int | float | None) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
