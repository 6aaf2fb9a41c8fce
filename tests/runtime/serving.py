"""How do tests of the runtime talk to a session: ask it, look into it, and have others ask at the same time?"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from hjgc.plan_format.structs import Plan
from hjgc.runtime import LogitsProcessor, Session
from hjgc.runtime.function import Function
from hjgc.runtime.runner import SegmentRunner
from hjgc.runtime.turns import Ticket
from tests.plans import small_plan
from tests.runtime.fake_device import FakeDevice

PATIENCE = 60
"""Seconds after which a test gives up on something that should happen at once."""

PREFILL_GRAPH = DECODE_GRAPH = 1400
"""Bytes that the fake device's graph of a default schedule holds."""

T = TypeVar("T")


@contextmanager
def serving(plan: Plan | None = None, **options: Any) -> Generator[tuple[Session, FakeDevice]]:
    """A session on a fake device, closed at the end."""
    device = FakeDevice(plan or small_plan())
    with Session(device.plan, device, **options) as session:
        yield session, device


def answer(
    session: Session, prompt: Sequence[int] | int = 3, tokens: int = 4, process: LogitsProcessor | None = None
) -> list[int]:
    """The first `tokens` tokens after a prompt, given as ids or as a length."""
    ids = list(range(1, prompt + 1)) if isinstance(prompt, int) else prompt
    with session.request(process=process) as request:
        further = (request.decode(last=number == tokens) for number in range(2, tokens + 1))
        return [request.prefill(ids, {}), *further]


def captured(session: Session) -> None:
    assert session.wait_captured(PATIENCE)


def entry(
    session: Session, phase: str = "decode", key: int = 1, schedule: str = "default", segment: int = 0
) -> dict[str, Any]:
    """What the report says of one runner."""
    wanted = {"kind": "static", "phase": phase, "key": key, "schedule": schedule, "segment": segment}
    (found,) = (e for e in session.report()["segments"] if all(e.get(name) == value for name, value in wanted.items()))
    return found


def runner_of(session: Session, phase: str = "decode", key: int = 1) -> SegmentRunner:
    """The runner of a default schedule itself, for tests that act as a step would."""
    (route,) = session._router.routes[phase, "default"]
    return next(runner for runner in route.runners if runner.bucket == key)  # type: ignore[union-attr]


class Arrivals:
    """Tells a test when a caller has joined the queue for the device."""

    def __init__(self, session: Session | Function) -> None:
        self._joined: queue.Queue[Ticket] = queue.Queue()
        joined = self._joined

        class Announcing(deque[Ticket]):
            def append(self, ticket: Ticket) -> None:
                super().append(ticket)
                joined.put(ticket)

        session._turns._waiting = Announcing()

    def wait(self) -> Ticket:
        return self._joined.get(timeout=PATIENCE)


def when_built(session: Session | Function) -> threading.Event:
    """Set once a graph is built and the worker asks for the device to check it."""
    asked, ask = threading.Event(), session._turns.take_if_idle

    def note() -> bool:
        asked.set()
        return ask()

    session._turns.take_if_idle = note  # type: ignore[method-assign]
    return asked


@contextmanager
def others() -> Generator[Callable[[Callable[[], T]], Future[T]]]:
    """Runs calls in threads of their own."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def result(future: Future[T]) -> T:
    return future.result(PATIENCE)
