"""Is there room for another graph, and which must go to make it?"""

from __future__ import annotations

from hjgc.runtime.runner import SegmentRunner, State


class Budget:
    """Bytes of device memory for graphs, counted from before a graph is built until after it is released. Called under
    the worker's lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evictions = 0
        self.peak = 0
        self._held: dict[SegmentRunner, int] = {}

    @property
    def runners(self) -> list[SegmentRunner]:
        """Those for whom something is counted."""
        return list(self._held)

    @property
    def used(self) -> int:
        return sum(self._held.values())

    def hold(self, runner: SegmentRunner, amount: int) -> None:
        """Count `amount` for the graph of `runner`, in place of what was counted for it before."""
        self._held[runner] = amount
        self.peak = max(self.peak, self.used)

    def drop(self, runner: SegmentRunner) -> None:
        """The graph of `runner` is released."""
        self._held.pop(runner, None)

    def victims(self, amount: int) -> list[SegmentRunner] | None:
        """Who must go so that `amount` more fits: promoted and not in use, least recently used first. None if not even
        all of them would do."""
        chosen: list[SegmentRunner] = []
        excess = self.used + amount - self.limit
        for runner in self._evictable():
            if excess <= 0:
                break
            chosen.append(runner)
            excess -= self._held[runner]
        return chosen if excess <= 0 else None

    def _evictable(self) -> list[SegmentRunner]:
        free = (runner for runner in self._held if runner.state is State.PROMOTED and runner.uses == 0)
        return sorted(free, key=lambda runner: runner.last_use)
