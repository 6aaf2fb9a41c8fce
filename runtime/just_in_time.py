"""Which variants are built while a session lives, why, and what came of it?

One child process builds one variant after the other, asked by one thread that no request waits for. What was refused
once, by who builds or by who takes it in, is not asked for again; a process that keeps ending is not started again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hjgc.plan_format.building import BuildAnswer, BuildRequest, BuiltVariant, Fault, build_request
from hjgc.plan_format.structs import Plan
from hjgc.runtime.build_child import BuildChild, Child, ChildLost
from hjgc.runtime.errors import SessionClosed

BUILD_SECONDS = 300.0
"""A build that takes longer is given up, and its process with it. The largest product takes some 20 s."""
MAX_QUEUED = 1024
"""Variants that may wait to be built; a plan has fewer."""
MAX_LOST = 2
"""Processes that may end before their time; then none is started any more."""


class Why(StrEnum):
    """Why something is built that was not built ahead of time."""

    UNKNOWN_CHIP = "unknown chip"
    UNPLANNED_ROWS = "unplanned rows"
    REBUILD = "rebuild"


class NotBuilt(Exception):
    """A variant could not be built: a sentence. `fault` says whose fault it is, None for the process's."""

    def __init__(self, words: str, fault: Fault | None = None) -> None:
        super().__init__(words)
        self.fault: Fault | None = fault


Done = Callable[[dict[int, BuiltVariant]], None]


@dataclass(frozen=True)
class Order:
    """Variants that are of use only together. `done` gets them when all are built."""

    variants: tuple[int, ...]
    why: Why
    done: Done


class JustInTime:
    """Builds variants of one plan, by index. Every method may be called from any thread, `build_now` before the first
    `order`."""

    def __init__(self, plan: Plan, start: Callable[[], Child] = BuildChild) -> None:
        self._plan, self._start = plan, start
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._orders: deque[Order] = deque()
        self._pending: set[int] = set()
        self._refused: set[int] = set()
        self._child: Child | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._off = ""
        self._lost = 0
        self._built: Counter[Why] = Counter()
        self._failures: list[dict[str, str]] = []
        self._seconds = 0.0

    def build_now(self, variants: Sequence[int], why: Why, progress: Callable[[str], None]) -> dict[int, BuiltVariant]:
        """Build all, and wait for it. Raises NotBuilt."""
        found: dict[int, BuiltVariant] = {}
        try:
            for number, index in enumerate(variants, 1):
                progress(f"build {number} of {len(variants)} kernels ({why})")
                found[index] = self._build(index, why)
        finally:
            self._drop_child()
        return found

    def order(self, variants: Sequence[int], why: Why, done: Done) -> bool:
        """Have them built behind the requests, unless some of them are on their way or were refused. Whether it will be
        done."""
        with self._lock:
            waiting = sum(len(order.variants) for order in self._orders)
            known = not (self._pending | self._refused).isdisjoint(variants)
            if known or self._closing or self._off or not variants or waiting + len(variants) > MAX_QUEUED:
                return False
            self._pending.update(variants)
            self._orders.append(Order(tuple(variants), why, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work_until_closed, name="hjgc-just-in-time", daemon=True)
                self._thread.start()
            self._news.notify_all()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is left to build. False if time ran out."""
        with self._lock:
            limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
            return self._news.wait_for(lambda: self._closing or not self._orders, limit) and not self._orders

    def close(self) -> None:
        """End the process at once, whatever it builds. May be called twice."""
        with self._lock:
            self._closing = True
            child, thread, self._thread = self._child, self._thread, None
            self._news.notify_all()
        if child is not None:
            child.kill()
        if thread is not None:
            thread.join()
        self._drop_child()

    def _work_until_closed(self) -> None:
        while True:
            with self._lock:
                self._news.wait_for(lambda: self._closing or bool(self._orders))
                if self._closing:
                    return
                order = self._orders[0]
            self._fill(order)
            if len(self._orders) == 1:  # it holds a compiler in memory
                self._drop_child()
            with self._lock:
                self._orders.popleft()
                self._pending.difference_update(order.variants)
                self._news.notify_all()

    def _fill(self, order: Order) -> None:
        """Build what was ordered and hand it over. Requests go on with what there was, whatever goes wrong."""
        try:
            order.done({index: self._build(index, order.why) for index in order.variants})
        except (NotBuilt, SessionClosed):
            pass  # written down where it happened; who closes needs nothing any more
        except Exception as error:
            with self._lock:
                self._refused.update(order.variants)
            self._fail(f"{len(order.variants)} kernels", order.why, f"not taken in: {type(error).__name__}: {error}")

    def _build(self, index: int, why: Why) -> BuiltVariant:
        request, began = build_request(self._plan, index), time.perf_counter()
        try:
            built = self._checked(index, self._ask(request))
        except NotBuilt as error:
            with self._lock:
                self._refused.add(index)
            self._fail(f"{request.template} for {request.target}", why, str(error))
            raise
        with self._lock:
            self._built[why] += 1
            self._seconds += time.perf_counter() - began
        return built

    def _ask(self, request: BuildRequest) -> BuiltVariant:
        child = self._living_child()
        try:
            answer: BuildAnswer = child.ask(request, BUILD_SECONDS)
        except ChildLost as lost:
            self._drop_child()
            with self._lock:
                self._lost += 1
                if self._lost >= MAX_LOST:
                    self._off = str(lost)
            raise NotBuilt(str(lost)) from None
        if answer.built is not None:
            return answer.built
        refusal = answer.refusal
        words = "no reason was given" if refusal is None else str(refusal)
        if refusal is not None and refusal.fault == "extra":
            self._turn_off(words)
        raise NotBuilt(words, None if refusal is None else refusal.fault)

    def _checked(self, index: int, built: BuiltVariant) -> BuiltVariant:
        """Found to be called as the plan's launches will call it."""
        variant = self._plan.variants[index]
        if (built.parameters, built.pdl) != (variant.parameters, variant.pdl):
            expected, found = list(variant.parameters), list(built.parameters)
            raise NotBuilt(f"expected a kernel with the parameters {expected}, found {found}; compile the model again")
        return built

    def _living_child(self) -> Child:
        with self._lock:
            if self._closing:
                raise NotBuilt("the session is closed")
            if self._off:
                raise NotBuilt(self._off)
            if self._child is not None:
                return self._child
        return self._new_child()

    def _new_child(self) -> Child:
        """Started without the lock, which requests take to order something."""
        try:
            child = self._start()
        except OSError as error:
            words = f"the process that builds kernels cannot be started: {error}"
            self._turn_off(words)
            raise NotBuilt(words) from None
        with self._lock:
            self._child = child
            closing = self._closing
        if closing:
            self._drop_child()
            raise NotBuilt("the session is closed")
        return child

    def _drop_child(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _turn_off(self, words: str) -> None:
        """For good: nothing more is built."""
        with self._lock:
            self._off = words

    def _fail(self, what: str, why: Why, words: str) -> None:
        with self._lock:
            if not self._closing:
                self._failures.append({"what": what, "reason": str(why), "why": words})

    def numbers(self) -> dict[str, Any]:
        """What was built so far, by reason, and what failed."""
        with self._lock:
            return {
                "state": "closed" if self._closing else "off" if self._off else "building" if self._orders else "idle",
                "why_off": self._off,
                "built": sum(self._built.values()),
                "reasons": {str(why): count for why, count in self._built.items()},
                "queued": sum(len(order.variants) for order in self._orders),
                "failed": len(self._failures),
                "failures": list(self._failures),
                "seconds": round(self._seconds, 6),
            }
