"""How does a person read what differs, the cause first, in 100 columns?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hjgc.tools.wrapping import wrapped

MOST_LINES = 12
"""Lines that one area takes; --json has all of it."""
MOST_VALUE = 160
OF_MANY = ("place", "nodes")
"""Fields that seldom say the same of two items: the values of the first stand for all."""
LAYER = re.compile(r"(?<=\.)\d+(?=[./])")
"""The number of a layer in a name: what is said of every layer is said once."""


def text(shown: dict[str, Any]) -> Iterator[str]:
    yield from wrapped(f"a  {shown['a']['path']} ({shown['a']['bytes']} bytes)")
    yield from wrapped(f"b  {shown['b']['path']} ({shown['b']['bytes']} bytes)")
    for note in shown["notes"]:
        yield from wrapped(f"note: {note}")
    yield ""
    if shown["same"]:
        yield "the same plan"
    else:
        yield from _causes(shown["causes"])
        yield from _changes(shown)
    if shown["rules"]:
        yield from ("", "rules")
        yield from _rules(shown["rules"])


def _causes(causes: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "cause" if len(causes) == 1 else "causes"
    for cause in causes:
        values = "" if cause["before"] is cause["after"] is None else f": {_values(cause)}"
        yield from wrapped(f"{cause['name']}{values}", first="  ", rest="    ")


def _changes(shown: dict[str, Any]) -> Iterator[str]:
    changes = shown["changes"]
    for area in dict.fromkeys(change["area"] for change in changes):
        yield from ("", area)
        lines = list(_folded([change for change in changes if change["area"] == area], shown["follows"]))
        for line in lines[:MOST_LINES]:
            yield from wrapped(line, first="  ", rest="    ")
        if len(lines) > MOST_LINES:
            yield f"  and {len(lines) - MOST_LINES} more lines: --json has all"


def _folded(changes: Sequence[dict[str, Any]], follows: dict[str, str]) -> Iterator[str]:
    """The same change of several items once, with the first of them and how many more there are."""
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for change in changes:
        values = "" if change["field"] in OF_MANY else LAYER.sub("#", _values(change))
        alike.setdefault((change["field"], values), []).append(change)
    for (field, _), several in alike.items():
        first, values = several[0]["item"], _values(several[0])
        more = f" and {len(several) - 1} more" if len(several) > 1 else ""
        item = "" if first in ("plan", "model", "predicted") else f"{first}{more}, "
        after = f", which follows from {follows[field]}" if field in follows else ""
        yield f"{item}{field}: {values}{after}"


def _values(change: dict[str, Any]) -> str:
    before, after = change["before"], change["after"]
    grown = ""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (before, after)) and before:
        grown = f" ({100 * (after / before - 1):+.1f} %)"
    return f"{_value(before)} -> {_value(after)}{grown}"


def _value(value: Any) -> str:
    words = "nothing" if value is None else str(value)
    return words if len(words) <= MOST_VALUE else f"{words[:MOST_VALUE]}..."


def _rules(rules: Sequence[dict[str, Any]]) -> Iterator[str]:
    for rule in rules:
        yield from wrapped(f"{rule['rule']}: {'broken' if rule['broken'] else 'kept'}", first="  ", rest="    ")
        for sentence in rule["broken"][:MOST_LINES]:
            yield from wrapped(sentence, first="    ", rest="      ")
        if len(rule["broken"]) > MOST_LINES:
            yield f"    and {len(rule['broken']) - MOST_LINES} more: --json has all"
