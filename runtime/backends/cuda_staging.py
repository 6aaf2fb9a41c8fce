"""How do a few bytes cross between host and device without anybody waiting: a prompt on its way up, a token down?

Copies from or to ordinary memory make the host wait while the driver stages them; from page-locked memory they take
their place in the stream and the call returns. So there are a few page-locked slots for each direction, used in turn,
each with an event that says when it is free, or filled. Whatever can wait until the step is launched, does: a prompt
costs the host one copy before its first kernel.

Waiting for a token is `cuEventSynchronize` at once. The events are not made for blocking waits
(`CU_EVENT_BLOCKING_SYNC`), so the thread spins in the driver and sees the token within a microsecond or so, and the
bindings release the interpreter lock meanwhile. A loop of `cuEventQuery` in Python would take the lock again at every
turn, and find the token no sooner. Whoever made the context first with `CU_CTX_SCHED_BLOCKING_SYNC` gets what he asked
for: the thread sleeps, and wakes some tens of microseconds late.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle

SLOTS = 4
TOKEN_SLOT = 64
"""Bytes between two tokens on the host: a cache line each."""


class Slots:
    """Page-locked slots of equal size, used in turn, each with an event. `close` when no copy is under way any more."""

    def __init__(self, driver: Driver, count: int, size: int) -> None:
        self._driver, self.size = driver, size
        self._undo: list[Callable[[], None]] = []
        self._next = 0
        try:
            self._memory = driver.allocate_host(count * size)
            self._undo.append(lambda: driver.free_host(self._memory))
            self.pieces = [self._memory[i * size : (i + 1) * size] for i in range(count)]
            self.events = [self._make_event() for _ in range(count)]
        except BaseException:
            self.close()
            raise

    @property
    def bytes(self) -> int:
        return len(self.pieces) * self.size

    def next(self) -> int:
        """The number of the slot used longest ago."""
        number, self._next = self._next, (self._next + 1) % len(self.pieces)
        return number

    def close(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _make_event(self) -> Handle:
        event = self._driver.make_event()
        self._undo.append(lambda: self._driver.drop_event(event))
        return event


class Uploads:
    """Small writes to the device, in the order of a stream: fill a room and `send` it, and `settle` when nothing is
    urgent. For one thread at a time."""

    def __init__(self, driver: Driver, stream: Handle, size: int) -> None:
        """`size`: the most bytes that one write may have."""
        self._driver, self._stream = driver, stream
        self._slots = Slots(driver, SLOTS, size)
        self._next = self._slots.next()
        self._sent: list[int] = []
        """Slots whose events are still to be recorded."""
        self._busy = [False] * SLOTS
        """Whether a slot's event has to be waited for."""
        self.bytes, self.close = self._slots.bytes, self._slots.close

    def room(self) -> Bytes:
        """What the next `send` copies from, free to be changed until then. Events of what was sent before are recorded
        no later than now: they are not to stand for what is launched behind this."""
        if self._sent:
            self._record()
        self._free_next()
        return self._slots.pieces[self._next]

    def send(self, address: int, size: int) -> None:
        """Copy the first bytes of the room to the device."""
        self._driver.send(address, self._slots.pieces[self._next][:size], self._stream)
        self._sent.append(self._next)
        self._next = self._slots.next()

    def write(self, address: int, data: Bytes) -> None:
        """Copy the data, which may be changed as soon as this returns."""
        self.room()[: data.nbytes] = data
        self.send(address, data.nbytes)

    def settle(self) -> None:
        """Free the next room, and let the events of what was sent stand for all that the stream holds by now."""
        if self._next not in self._sent:
            self._free_next()
        self._record()

    def _record(self) -> None:
        for number in self._sent:
            self._driver.record(self._slots.events[number], self._stream)
            self._busy[number] = True
        self._sent.clear()

    def _free_next(self) -> None:
        if self._busy[self._next]:
            self._driver.wait_event(self._slots.events[self._next])
            self._busy[self._next] = False


class Tokens:
    """The tokens of the steps in a stream, fetched while the next step may already run."""

    def __init__(self, driver: Driver, stream: Handle, address: int) -> None:
        """`address`: where each step leaves its token, int32."""
        self._driver, self._stream, self._address = driver, stream, address
        self._slots = Slots(driver, SLOTS, TOKEN_SLOT)
        self._values = [piece[:4].view(np.int32) for piece in self._slots.pieces]
        self.bytes, self.close = self._slots.bytes, self._slots.close

    def send(self) -> int:
        """Behind what the stream holds: fetch the token. A ticket for `read`, good until its slot comes round again."""
        number = self._slots.next()
        self._driver.fetch(self._slots.pieces[number][:4], self._address, self._stream)
        self._driver.record(self._slots.events[number], self._stream)
        return number

    def read(self, ticket: int) -> int:
        """From any thread; `send` may go on meanwhile in another."""
        self._driver.wait_event(self._slots.events[ticket])
        return int(self._values[ticket][0])
