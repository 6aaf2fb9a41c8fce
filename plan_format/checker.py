"""How does a check say what is wrong with a plan, and where inside it?"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from hjgc.plan_format.errors import PlanError

MAX_NAME = 512
MAX_TEXT = 4096


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
        if not 0 <= index < len(table):
            self.fail(where, f"expected an index below {len(table)}, found {index}")

    def count(self, table: Sequence[object], most: int, where: str) -> None:
        if len(table) > most:
            self.fail(where, f"expected at most {most} entries, found {len(table)}")

    def text(self, text: str, where: str, most: int = MAX_TEXT) -> None:
        """Text that may be shown as it is: no control characters, which would reach the reader's terminal."""
        if len(text) > most or not text.isprintable():
            self.fail(where, f"expected printable text of up to {most} characters, found {brief(text)}")

    def unique_names(self, entries: Iterable[str], where: str, taken: set[str] | None = None) -> None:
        """Each name short, printable and new; `taken` holds those that are not, and gets these too."""
        seen: set[str] = set() if taken is None else taken
        for i, name in enumerate(entries):
            if not name or len(name) > MAX_NAME or not name.isprintable():
                self.fail(f"{where}[{i}].name", f"expected a short printable name, found {brief(name)}")
            if name in seen:
                self.fail(f"{where}[{i}].name", f"expected a name not used before, found {brief(name)}")
            seen.add(name)


class _Brief(reprlib.Repr):
    """A few words on anything, without spelling out all of it first."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_instance(self, x: object, level: int) -> str:
        return type(x).__name__ if isinstance(x, msgspec.Struct) else super().repr_instance(x, level)


_BRIEF = _Brief()


def brief(found: object) -> str:
    return _BRIEF.repr(found)
