"""What can go wrong that a person must mend, and how do we say it in one line?"""

from __future__ import annotations

import os


class HjgcError(Exception):
    """Anything hjgc refuses with a sentence instead of a traceback. The command line exits with 2."""


class InputError(HjgcError):
    """A file or argument that cannot be used: which one, which field, expected and found, and what to do next."""

    def __init__(
        self, place: str | os.PathLike[str], problem: str, *, field: str | None = None, next_step: str | None = None
    ) -> None:
        self.place, self.problem, self.field, self.next_step = os.fspath(place), problem, field, next_step
        where = self.place if field is None else f"{self.place}: {field}"
        super().__init__(f"{where}: {problem}" + (f"; {next_step}" if next_step else ""))


class PlanError(InputError):
    """A plan file that is broken, hostile, of another version, or does not fit its weights or this machine."""


class CompileError(InputError):
    """A model that the compiler cannot turn into a plan: the node, what was expected of it, what was found."""


class RunError(HjgcError):
    """A request that the session cannot serve (prompt too long, closed session, driver refusal)."""
