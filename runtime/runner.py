"""What state is a segment in, and which may follow?

    COLD -> WARM -> QUEUED -> BUILT -> PROMOTED -> EVICTED -> QUEUED ...
                    QUEUED -> REFUSED (why)
            WARM -> REFUSED         (what runs before it cannot be repeated, so no graph of it could be checked)
                    QUEUED -> WARM          (the worker crashed: nobody will build it)
                              BUILT -> QUARANTINED (report)
                    any    -> COLD          (other code serves from now on)

A runner exists for each (phase, schedule, segment, bucket), of a function for each tuple of sizes that calls had
lately. Everything that changes a state is called under the worker's lock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hjgc.plan_format.reasons import Reason
from hjgc.runtime.backend import Graph, Rows, spell_rows
from hjgc.runtime.samples import Sample


class State(StrEnum):
    COLD = "COLD"
    """never ran"""
    WARM = "WARM"
    """ran plainly"""
    QUEUED = "QUEUED"
    """traffic asked for a graph; the worker will come to it"""
    BUILT = "BUILT"
    """a graph exists and has not been compared with the plain run yet"""
    PROMOTED = "PROMOTED"
    """a graph serves"""
    EVICTED = "EVICTED"
    """its graph gave way to another; runs plainly, and the next run asks again"""
    REFUSED = "REFUSED"
    """will not be captured; runs plainly for good"""
    QUARANTINED = "QUARANTINED"
    """its graph computed something else than the plain run; runs plainly for good"""


NEXT: dict[State, frozenset[State]] = {  # but for COLD, which `renew` returns to from anywhere
    State.COLD: frozenset({State.WARM}),
    State.WARM: frozenset({State.QUEUED, State.REFUSED}),
    State.QUEUED: frozenset({State.BUILT, State.REFUSED, State.WARM}),
    State.BUILT: frozenset({State.PROMOTED, State.QUARANTINED}),
    State.PROMOTED: frozenset({State.EVICTED}),
    State.EVICTED: frozenset({State.QUEUED}),
    State.REFUSED: frozenset(),
    State.QUARANTINED: frozenset(),
}
PENDING = frozenset({State.QUEUED, State.BUILT})
"""Of a runner that traffic asked for and that is not settled yet."""
HOPELESS = frozenset({State.REFUSED, State.QUARANTINED})
"""Of a runner that will have no graph."""
REMEMBERED = 32
"""How many transitions a runner remembers."""


class IllegalTransition(RuntimeError):
    """A bug in the runtime: a state was left for one that may not follow it."""


@dataclass(frozen=True)
class Stretch:
    """Which launches have one graph: the static segment numbered `first` of a schedule, or all segments from there
    `through` another, islands included."""

    phase: str
    schedule: str
    first: int
    launches: tuple[int, ...]
    through: int = -1

    @property
    def last(self) -> int:
        return max(self.first, self.through)


def spell_segments(first: int, last: int) -> str:
    """As people read it: `4`, `0-44`."""
    return str(first) if first == last else f"{first}-{last}"


class SegmentRunner:
    """One static segment of one schedule, or a stretch of segments, at one bucket. `shortest` is the shortest length
    that the bucket serves; of a function both are the sizes that it serves, and `sample` is a call of them while its
    graph is to be checked. `barred` says why it may have no graph whatever it computes, if so."""

    def __init__(self, stretch: Stretch, bucket: Rows, shortest: Rows, barred: str = "") -> None:
        self.phase, self.schedule, self.launches = stretch.phase, stretch.schedule, stretch.launches
        self.segment, self.last_segment = stretch.first, stretch.last
        self.bucket, self.shortest, self.barred = bucket, shortest, barred
        self.state = State.COLD
        self.history: deque[str] = deque(maxlen=REMEMBERED)
        self.graph: Graph | None = None
        self.sample: Sample | None = None
        self.why = ""
        self.report: dict[str, Any] | None = None
        self.hits = self.plain_runs = self.aborted_checks = 0
        self.uses = self.last_use = self.last_start = 0
        self.bytes_wanted: int | None = None

    @property
    def name(self) -> str:
        return (
            f"{self.phase}/{self.schedule}/{spell_segments(self.segment, self.last_segment)}/{spell_rows(self.bucket)}"
        )

    @property
    def is_exact(self) -> bool:
        """Is it one of a function's, for just these sizes?"""
        return not isinstance(self.bucket, int)

    @property
    def bytes(self) -> int:
        """The device memory its graph holds now."""
        return 0 if self.graph is None else self.graph.bytes

    def warm(self) -> None:
        self._become(State.WARM)

    def queue(self, sample: Sample | None = None) -> None:
        self._become(State.QUEUED)
        self.sample = sample

    def unqueue(self) -> None:
        """Nobody will build it: the worker crashed."""
        self._become(State.WARM)

    def built(self, graph: Graph) -> None:
        self._become(State.BUILT)
        self.graph = graph

    def promote(self) -> None:
        self._become(State.PROMOTED)

    def evict(self) -> Graph:
        """The graph, to be released by the caller."""
        if self.uses:
            raise IllegalTransition(f"{self.name}: evicted while {self.uses} steps use its graph")
        self._become(State.EVICTED)
        return self._surrender()

    def refuse(self, why: str) -> None:
        self._become(State.REFUSED)
        self.why = why

    def quarantine(self, report: dict[str, Any]) -> Graph:
        """The graph, to be released by the caller."""
        self._become(State.QUARANTINED)
        self.report, self.why = report, str(report["why"])
        return self._surrender()

    def _surrender(self) -> Graph:
        graph, self.graph = self.graph, None
        assert graph is not None
        return graph

    def renew(self) -> Graph | None:
        """Other code serves from now on: nothing that was found out holds. The graph if there is one, to be released by
        the caller."""
        if self.uses:
            raise IllegalTransition(f"{self.name}: renewed while {self.uses} steps use its graph")
        if self.state is not State.COLD:
            self.history.append(f"{self.state} -> {State.COLD}")
        self.state, self.why, self.report, self.aborted_checks = State.COLD, "", None, 0
        return self.forget()

    def forget(self) -> Graph | None:
        """The graph if there is one, to be released by the caller: the session ends, so the state stays as it was."""
        graph, self.graph = self.graph, None
        self.sample = None
        return graph

    def _become(self, state: State) -> None:
        if state not in NEXT[self.state]:
            allowed = ", ".join(sorted(NEXT[self.state])) or "nothing"
            raise IllegalTransition(f"{self.name}: expected {allowed} after {self.state}, found {state}")
        self.history.append(f"{self.state} -> {state}")
        self.state = state
        if state not in PENDING:
            self.sample = None


class DynamicRunner:
    """One dynamic segment: it has reasons and no states. `pieces`: (the function of the caller's or None, launches), in
    order."""

    def __init__(
        self,
        phase: str,
        schedule: str,
        segment: int,
        pieces: tuple[tuple[str | None, tuple[int, ...]], ...],
        reasons: tuple[Reason, ...],
    ) -> None:
        self.phase, self.schedule, self.segment = phase, schedule, segment
        self.pieces, self.reasons = pieces, reasons
        self.runs = 0

    @property
    def launches(self) -> int:
        return sum(len(launches) for _, launches in self.pieces)
