"""May the device be taken for work of our own now, so that few requests find it in their way?

A request that comes while a graph is being checked waits until the device has done what it was given, up to a whole
pass of a prompt. So checks take no more than a share of the time, and begin when a caller has just had his answer, who
takes a moment to come back, or when nobody has come for long. What is not used of the share is kept, but not for long:
a session that had nothing to do for an hour does not check for a minute on end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1
"""Of the time, that checks may take while requests come."""
CUT_SHORT = 0.25
"""Seconds that a check costs at least which a request cut short: that request was late. So callers who are back at once
meet a check every 2.5 seconds."""
MOST = 0.05
"""Seconds that may be kept, and that there are at first: the first check waits for a good moment alone, whatever it
costs."""
JUST_NOW, LONG_AGO = 0.003, 1.0
"""Seconds after the last request within which a check may begin, and after which it may again."""


class Allowance:
    """Seconds that may be spent: more with time, paid for afterwards. Any thread may ask, one may spend."""

    def __init__(
        self, share: float = SHARE, most: float = MOST, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._share, self._most, self._clock = share, most, clock
        self._counted = (most, clock())

    def pause(self) -> float:
        """Seconds until there is something left to spend; 0 for now."""
        return max(0.0, -self._left(self._clock()) / self._share)

    def spend(self, seconds: float) -> None:
        """A piece of work took so long, and has just ended."""
        now = self._clock()
        self._counted = (self._left(now) - seconds, now)

    def _left(self, now: float) -> float:
        left, counted = self._counted
        return min(self._most, left + (now - counted) * self._share)


def until_good_moment(idle: float) -> float:
    """Seconds until a piece of work may begin on a device that has been `idle` for so long; 0 for now."""
    return 0.0 if idle <= JUST_NOW or idle >= LONG_AGO else LONG_AGO - idle
