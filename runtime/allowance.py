"""May the device be taken for work of our own now, so that few requests find it in their way?

A request that comes while a graph is being checked waits until the device has done what it was given, up to a whole
pass of a prompt. So that such requests are fewer than those beyond p99, checks take no more than a share of the time.
What is not used is kept, but not for long: a session that had nothing to do for an hour does not check for a minute on
end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.02
"""Of the time, that checks may take while requests come. A request is late if it meets a replay, which is a fifth to a
third of a check's time: the rest of it ends within a few launches."""
MOST = 0.05
"""Seconds that may be kept, and that there are at first: the first graph is checked in the gap behind the first answer,
whatever it costs."""


class Allowance:
    """Seconds that may be spent: more with time, paid for afterwards. Any thread may ask, one may spend."""

    def __init__(
        self, share: float = SHARE, most: float = MOST, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._share, self._most, self._clock = share, most, clock
        self._counted = (most, clock())

    def pause(self) -> float:
        """Seconds until the next piece of work may begin; 0 for now."""
        return max(0.0, -self._left(self._clock()) / self._share)

    def spend(self, seconds: float) -> None:
        """A piece of work took so long, and has just ended."""
        now = self._clock()
        self._counted = (self._left(now) - seconds, now)

    def _left(self, now: float) -> float:
        left, counted = self._counted
        return min(self._most, left + (now - counted) * self._share)
