"""How fast is each system with a GPU to itself?

One after the other, each in a process of its own that ends before the next begins: no two models share the memory, and
nothing of one disturbs another. The loop of a cell (one prompt, many answers) runs inside that process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hjgc.plan_format.errors import HjgcError
from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.systems import Contender
from hjgc.tools.benchmarking import CAPTURE_SECONDS, startup
from hjgc.tools.peers.client import PeerProcess
from hjgc.tools.peers.peer import Answer, Series

PROMPT_TOKENS = 2
"""Tokens of an answer whose first one is timed: the second leaves nothing launched ahead for the next request."""
WARM_UP = 2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One system at one prompt length or context: its first answer there, and the many that follow."""

    first: Answer
    series: Series


@dataclass
class Found:
    """What one system did; `unavailable` says why it did nothing."""

    versions: dict[str, str] = field(default_factory=dict[str, str])
    startup_ms: dict[str, float] = field(default_factory=dict[str, float])
    prompts: dict[int, Cell] = field(default_factory=dict[int, Cell])
    contexts: dict[int, Cell] = field(default_factory=dict[int, Cell])
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    settled: bool = True
    unavailable: str | None = None


def measure_all(contenders: Mapping[str, Contender], settings: Settings, tell: Tell, found: dict[str, Found]) -> None:
    """Into `found`, as it comes: whoever is interrupted has what was there before. Raises HjgcError if no system at all
    can be measured."""
    for name, contender in contenders.items():
        _measure(name, contender, settings, tell, found)
    reasons = [entry.unavailable for entry in found.values() if entry.unavailable is not None]
    if len(reasons) == len(found):
        raise HjgcError(reasons[0])


def _measure(name: str, contender: Contender, settings: Settings, tell: Tell, found: dict[str, Found]) -> None:
    """One that fails is told apart: the hour that the others took is not lost."""
    tell(f"{name}: start")
    try:
        with PeerProcess(name, contender.spec, settings.threads) as process:
            found[name] = Found(versions=process.versions)
            _System(name, process, contender, settings, tell).measure(found[name])
    except HjgcError as error:
        tell(f"note: {error}")
        found[name] = Found(unavailable=str(error))


class _System:
    """One running system."""

    def __init__(self, name: str, process: PeerProcess, contender: Contender, settings: Settings, tell: Tell) -> None:
        self._name, self._process, self._contender = name, process, contender
        self._settings, self._tell = settings, tell

    def measure(self, found: Found) -> None:
        """The first answers come before all others: every graph for a prompt is there before anything counts."""
        decode = self._settings.decode
        met = {length: self._meet(length, decode + 1, found) for length in self._contender.lengths}
        found.startup_ms = startup(self._process, next(iter(met.values())))
        for length, first in met.items():
            self._tell(f"{self._name}: {self._contender.repeat} prompts of {length} tokens")
            found.prompts[length] = Cell(
                first, self._series(length, PROMPT_TOKENS, self._contender.repeat, self._settings.rest)
            )
        for context in self._contender.contexts:
            self._tell(f"{self._name}: decode at context {context}")
            rounds = math.ceil(self._contender.repeat / decode)
            first = self._meet(context, decode + 1, found)
            found.contexts[context] = Cell(first, self._series(context, decode + 1, rounds))
        found.details = self._process.details()

    def _meet(self, length: int, tokens: int, found: Found) -> Answer:
        self._tell(f"{self._name}: first answer after {length} tokens")
        answer = self._process.answer(self._settings.prompt(length), tokens)
        if not self._process.settle(CAPTURE_SECONDS):
            found.settled = False
            self._tell(f"note: {self._name}: not every graph was ready after {CAPTURE_SECONDS:.0f} s")
        return answer

    def _series(self, length: int, tokens: int, repeat: int, rest: float = 0.0) -> Series:
        return self._process.series(self._settings.prompt(length), tokens, repeat, WARM_UP, rest / 1e3)
