"""Which code serves a session, and when does what was built since come in?"""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.chips import PORTABLE
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.backend import CodeBackend
from hjgc.runtime.code_choice import CodeChoice
from hjgc.runtime.just_in_time import JustInTime, Why
from hjgc.runtime.route import Router
from hjgc.runtime.runner import State
from hjgc.runtime.turns import Turns
from hjgc.runtime.worker import CaptureWorker


class CodeSource:
    """What a session is given to serve with code that its plan may lack: the choice made at its opening, and who
    builds. `strict`: a build that was not planned is an error."""

    def __init__(self, choice: CodeChoice, backend: CodeBackend, builds: JustInTime, *, strict: bool) -> None:
        self.choice, self.backend, self.builds, self.strict = choice, backend, builds, strict

    def close(self) -> None:
        """Before a session owns it."""
        self.builds.close()
        self.backend.close()


class Supply:
    """Orders what is missing, and takes it in between two requests, one variant at a time, so that none waits long."""

    def __init__(self, source: CodeSource, turns: Turns, router: Router, worker: CaptureWorker) -> None:
        self._choice, self._backend, self._builds = source.choice, source.backend, source.builds
        self._strict = source.strict
        self._turns, self._router, self._worker = turns, router, worker
        self._swaps: list[str] = []
        router.lacks = self._lacks

    def start(self) -> None:
        """Order the better code, if there is any."""
        if self._choice.better is not None:
            self._builds.order(self._choice.later, Why.UNKNOWN_CHIP, self._switch)

    def _lacks(self, phase: str, rows: int) -> None:
        """A request would like to have so many rows in one call."""
        missing = self._backend.missing(phase, rows)
        if self._strict:
            raise RunError(_refused(self._choice.plan, missing[0], phase, rows))
        target = self._backend.name
        self._builds.order(missing, Why.UNPLANNED_ROWS, lambda built: self._extend(target, phase, rows, built))

    def _extend(self, target: str, phase: str, rows: int, built: dict[int, BuiltVariant]) -> None:
        """More rows of the code that serves; of no use to code that has given way meanwhile."""
        if self._backend.name != target:
            return
        self._load(built)
        refused = [r for r in self._router.runners if r.phase == phase and r.state is State.REFUSED]
        with self._turns.between(), self._worker.renewing(refused):
            self._swaps.append(f"{phase} of up to {rows} rows in one call")

    def _switch(self, built: dict[int, BuiltVariant]) -> None:
        """All of the better target: it serves from now on."""
        target = self._choice.better
        assert target is not None
        self._load(built)
        change = self._backend.prepare(target)
        with self._turns.between(), self._worker.renewing(self._router.runners):
            change()
            self._swaps.append(f"{self._choice.target} gave way to {target}")

    def _load(self, built: dict[int, BuiltVariant]) -> None:
        for index, variant in built.items():
            with self._turns.between():
                self._backend.load(index, variant)

    def wait(self, timeout: float | None) -> bool:
        return self._builds.wait(timeout)

    def close(self) -> None:
        """The process that builds ends at once."""
        self._builds.close()

    def report(self) -> dict[str, Any]:
        return {
            "target": self._backend.name,
            "fallback": self._backend.name == PORTABLE,
            "why": self._choice.words,
            "strict": self._strict,
            "swaps": list(self._swaps),
            "just_in_time": self._builds.numbers(),
        }


def _refused(plan: Plan, index: int, phase: str, rows: int) -> str:
    variant = plan.variants[index]
    name = plan.templates[variant.template].name
    return (
        f"expected code for {phase} of {rows} rows, since builds that were not planned are not allowed (strict), found "
        f"{name} for {variant.target} not built ahead of time ({Why.UNPLANNED_ROWS}); compile with --prompt 1:{rows}"
    )
