"""Whose turn is it to use the device?

Callers are served first come first served. The promotion gate is the last of all: it gets the device only while nobody
holds it or waits for it, and learns from `wanted` that somebody has come.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from hjgc.plan_format.errors import RunError
from hjgc.runtime.errors import Cancelled, DeadlineExceeded, SessionClosed


class Ticket:
    """One caller's place in the queue, and what may end the request early, if it is for a `request`. `deadline` is in
    seconds from now."""

    def __init__(self, deadline: float | None = None, *, request: bool = True) -> None:
        self.seconds, self.request = deadline, request
        self.cancelled = False
        self._until = None if deadline is None else time.monotonic() + deadline

    @property
    def expired(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    @property
    def stopped(self) -> bool:
        return self.cancelled or self.expired

    def seconds_left(self) -> float | None:
        """How long a wait may take, as `Condition.wait` wants it."""
        if self._until is None:
            return None
        return min(max(0.0, self._until - time.monotonic()), threading.TIMEOUT_MAX)

    def error(self) -> RunError:
        """Why the request goes no further."""
        if self.cancelled:
            return Cancelled("the request was cancelled; make another to go on")
        return DeadlineExceeded(f"expected the request to end within {self.seconds} s, found its deadline passed")

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded."""
        if self.stopped:
            raise self.error()


_GATE = Ticket()


class Turns:
    """The queue. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.on_idle: Callable[[], None] = lambda: None
        self.outcomes: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._holder: Ticket | None = None
        self._left = time.perf_counter()
        self._closed = False

    def take(self, ticket: Ticket) -> None:
        """Wait for the device. Raises Cancelled, DeadlineExceeded or SessionClosed, having left the queue."""
        try:
            with self._changed:
                self._wait(ticket)
        except BaseException as error:  # an interrupt may come after the device was given
            self.give_back(ticket, type(error))
            raise

    def _wait(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        try:
            while True:
                if self._closed:
                    raise SessionClosed()
                ticket.check()
                if self._holder is None and self._waiting[0] is ticket:
                    break
                self._changed.wait(ticket.seconds_left())
            self._holder = ticket
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def give_back(self, ticket: Ticket, ended_by: type[BaseException] | None) -> None:
        """The caller is done with the device, well or because of an exception."""
        self._count(ticket, ended_by)
        self._release(ticket)
        self._tell_if_idle()

    def cancel(self, ticket: Ticket) -> None:
        """Let the request of this ticket end at its next step, or leave the queue."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify_all()

    @contextmanager
    def between(self) -> Generator[None]:
        """The device between two requests, for what changes how it serves: a place in the queue like any other, counted
        as no request. Raises SessionClosed."""
        ticket = Ticket(request=False)
        with self._changed:
            self._wait(ticket)
        try:
            yield
        finally:
            self._release(ticket)
            self._tell_if_idle()

    def take_if_idle(self) -> bool:
        """The gate's turn: True if nobody held the device or waited for it. Never waits."""
        with self._changed:
            if self._closed or self._holder is not None or self._waiting:
                return False
            self._holder = _GATE
            return True

    def give_back_gate(self) -> None:
        self._release(_GATE)

    @property
    def wanted(self) -> bool:
        """Does anyone wait for the device?"""
        return bool(self._waiting)

    @property
    def serving(self) -> bool:
        """Does a caller hold the device, or wait for it?"""
        return bool(self._waiting) or self._holder not in (None, _GATE)

    @property
    def idle(self) -> float | None:
        """For how many seconds no caller has held the device; None if one does, or waits for it."""
        return None if self.serving else time.perf_counter() - self._left

    @property
    def waiting(self) -> int:
        """How many requests wait for the device."""
        with self._changed:
            return sum(ticket.request for ticket in self._waiting)

    def close(self) -> None:
        """Send everyone who waits away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def counts(self) -> dict[str, int]:
        """How many requests ended in which way."""
        with self._changed:
            return {name: self.outcomes[name] for name in ("finished", "cancelled", "expired", "abandoned", "failed")}

    def _release(self, ticket: Ticket) -> None:
        with self._changed:
            if self._holder is ticket:
                self._holder = None
                if ticket is not _GATE:
                    self._left = time.perf_counter()
                self._changed.notify_all()

    def _tell_if_idle(self) -> None:
        # Outside the lock: the listener takes its own, and asks us things while it holds that.
        if self._holder is None and not self._waiting:
            self.on_idle()

    def _count(self, ticket: Ticket, ended_by: type[BaseException] | None) -> None:
        with self._changed:
            self.outcomes[_outcome(ticket, ended_by)] += 1


def _outcome(ticket: Ticket, ended_by: type[BaseException] | None) -> str:
    if ended_by is None:
        return "finished"
    if ticket.cancelled:
        return "cancelled"
    if issubclass(ended_by, DeadlineExceeded):
        return "expired"
    return "abandoned" if issubclass(ended_by, GeneratorExit) else "failed"
