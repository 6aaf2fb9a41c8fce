"""How does a check say what is wrong with a plan, and where inside it?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from hjgc.plan_format.errors import PlanError

MAX_NAME = 512


class Checker:
    """Raises PlanError with the place inside the plan."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, problem: str) -> NoReturn:
        raise PlanError(self.path, problem, field=where, next_step="the plan is damaged: compile the model again")

    def require(self, holds: bool, where: str, expected: str, found: object) -> None:
        if not holds:
            self.fail(where, f"expected {expected}, found {brief(found)}")

    def index(self, index: int, table: Sequence[object], where: str) -> None:
        self.require(0 <= index < len(table), where, f"an index below {len(table)}", index)

    def unique_names(self, entries: Iterable[str], where: str) -> None:
        seen: set[str] = set()
        for i, name in enumerate(entries):
            self.require(0 < len(name) <= MAX_NAME and name.isprintable(), f"{where}[{i}].name", "a short name", name)
            self.require(name not in seen, f"{where}[{i}].name", "a name not used before", name)
            seen.add(name)


def brief(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 80 else text[:77] + "..."
