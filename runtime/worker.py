"""Who builds graphs, when, and what if it fails?

One thread takes the runners that traffic asked for, in that order: makes room in the byte budget, builds, and, in a gap
between requests, lets the gate compare. Builds beside a request are spaced; checks take a small share of the time,
unless somebody waits for the graphs. The lock guards runners, queue and budget; it is held for a few steps of
bookkeeping at a time and never while the device builds, checks or releases, so a request that needs it does not wait.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from hjgc.runtime.allowance import CUT_SHORT, Allowance, until_good_moment
from hjgc.runtime.backend import Backend, BackendRefused, Graph
from hjgc.runtime.budget import Budget
from hjgc.runtime.errors import SessionClosed
from hjgc.runtime.gate import Gate, Interrupted
from hjgc.runtime.runner import PENDING, SegmentRunner, State
from hjgc.runtime.samples import Sample
from hjgc.runtime.turns import Turns

SWITCH_INTERVAL = 1e-4
"""Seconds. Python's default of 5 ms would let the worker keep the interpreter for longer than a whole decode step."""

BUILD_SPACING = 0.02
"""Seconds from the end of a build to the begin of the next while a request has the device or waits for it; and the
longest that a build whose time has come waits for the serving thread to have launched its step. Explicit builds this
far apart (0.3 ms each for a decode step) could not be seen in the latency of a request that replays (docs)."""

NAP = 1e-4
"""Seconds between two looks of a build that gives way to a step being launched, for as long as BUILD_SPACING. Two
threads that want the interpreter hand it over every tenth of a millisecond, several times in a prompt's launch."""

UNTIL_NEWS = math.inf

PATIENCE = 4
"""After so many trials given up for a request, those left of the same runner are finished: else a caller who leaves
only short gaps would never get a graph. Each of the two delays one request, once, by a plain run and a replay of a
step. A trial that is given up costs so much of the allowance that this takes ten seconds."""

TURN_AFTER = 60.0
"""Seconds after which a trial that found the device taken every time takes a place in the queue like a request: else
there would be no graph where somebody always waits. It delays those behind it, once in so many seconds."""


class CaptureWorker:
    """The background worker. `take`, `put_back`, `launching`, `ran_plainly`, `may_ask` and `retire` are for the thread
    that serves a request, `renewing` for who holds the device between two; the rest is for any thread."""

    def __init__(self, backend: Backend, gate: Gate, turns: Turns, limit: int) -> None:
        self.lock = threading.RLock()
        self.budget = Budget(limit)
        self.state = "off"
        self.settle: Callable[[], None] = lambda: None
        self.builds = self.build_failures = self.aborted_checks = self.insisted_checks = self.checks_in_turn = 0
        self.builds_beside_requests = 0
        self.build_seconds = self.longest_build = self.pacing_seconds = self.check_seconds = 0.0
        self._built_last = -math.inf
        self._held_since: float | None = None
        self._launching = False
        self._backend, self._gate, self._turns = backend, gate, turns
        self._allowance = Allowance()
        self._in_a_hurry = 0
        self._napped = 0.0
        self._due_since: float | None = None
        self._news = threading.Condition(self.lock)
        self._settled = threading.Condition(self.lock)
        self._events = self._clock = 0
        self._queue: deque[SegmentRunner] = deque()
        self._built: deque[SegmentRunner] = deque()
        self._starved = self._pacing = self._closing = self._insisting = False
        self._building = threading.Lock()
        self.renewed = self.retired = 0
        self.retired_hits = self.retired_plain_runs = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """From now on, plain runs ask for graphs."""
        _fine_switching.begin()
        self.state = "running"
        self._turns.on_idle = self._device_is_idle
        self._thread = threading.Thread(target=self._work_until_closed, name="hjgc-capture", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, after the build in progress if there is one, and release every graph. No request may be running."""
        with self.lock:
            self._closing = True
            self._tell()
            self._settled.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            _fine_switching.end()
        if self.state == "running":
            self.state = "closed"
        with self.lock:
            runners = [*self.budget.runners, *self._queue]
            graphs = [(runner, graph) for runner in runners if (graph := runner.forget()) is not None]
        for runner, graph in graphs:
            self._release(runner, graph)

    def take(self, runner: SegmentRunner) -> Graph | None:
        """The runner's graph, now in use, if one serves."""
        with self.lock:
            if runner.state is not State.PROMOTED:
                return None
            self._clock += 1
            runner.uses += 1
            runner.hits += 1
            runner.last_use = self._clock
            return runner.graph

    def put_back(self, runners: Collection[SegmentRunner]) -> None:
        """The device is done with the graphs of these runners, each named once for each `take`."""
        with self.lock:
            for runner in runners:
                runner.uses -= 1
            if self._starved and runners:
                self._tell()

    def launching(self, yes: bool) -> None:
        """The serving thread begins to launch a step, or has done so and has only to wait now: a good time to build."""
        self._launching = yes
        if self._held_since is not None and not yes:
            with self.lock:
                self._tell()

    def step_abandoned(self) -> None:
        """The device is left with a step whose token nobody will read: whoever needs its graphs must call `settle`."""
        if self._queue:
            with self.lock:
                self._tell()

    def ran_plainly(self, runner: SegmentRunner, start: int, sample: Sample | None = None) -> None:
        """The runner's segment ran without a graph, `start` tokens being cached: ask for one if it may have one. Of a
        function `sample` is the call, without which its graph could not be checked."""
        with self.lock:
            runner.plain_runs += 1
            runner.last_start = start
            if runner.state is State.COLD:
                runner.warm()
            if self.accepts and runner.barred and runner.state is State.WARM:
                runner.refuse(runner.barred)
            if self.may_ask(runner) and (sample is not None or not runner.is_exact):
                runner.queue(sample)
                self._queue.append(runner)
                self._tell()

    def may_ask(self, runner: SegmentRunner) -> bool:
        """Would a plain run ask for a graph?"""
        return self.accepts and not runner.barred and runner.state in (State.COLD, State.WARM, State.EVICTED)

    def retire(self, runner: SegmentRunner) -> bool:
        """Nobody will ask for this runner any more: release its graph, and keep what it counted. False, and nothing is
        done, while the graph is in use or traffic waits for it."""
        with self.lock:
            if runner.uses or runner.state in PENDING:
                return False
            self.retired += 1
            self.retired_hits += runner.hits
            self.retired_plain_runs += runner.plain_runs
            runner.hits = runner.plain_runs = 0
            graph = runner.evict() if runner.state is State.PROMOTED else None
        if graph is not None:
            self._release(runner, graph)
        return True

    @contextmanager
    def renewing(self, runners: Collection[SegmentRunner]) -> Generator[None]:
        """For who holds the device between two requests: the block changes the code that these runners run, so they are
        cold again and their graphs go. No graph is built meanwhile."""
        self.settle()
        with self._building:
            with self.lock:
                graphs = [(runner, graph) for runner in runners if (graph := self._renew(runner)) is not None]
                self._settled.notify_all()
            for runner, graph in graphs:
                self._release(runner, graph)
            yield

    def _renew(self, runner: SegmentRunner) -> Graph | None:
        for line in (self._queue, self._built):
            if runner in line:
                line.remove(runner)
        self._gate.forget(runner)
        self.renewed += runner.state is not State.COLD
        return runner.renew()

    @property
    def accepts(self) -> bool:
        return self.state == "running" and not self._closing

    @property
    def pending(self) -> int:
        """Runners that traffic asked for and that are not settled yet."""
        return len(self._queue) + len(self._built)

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is pending; meanwhile checks take as much of the time as they can get. False if time ran
        out, or nobody works on it."""
        limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        with self.lock:
            if self.accepts and self.pending and limit != 0:
                self._in_a_hurry += 1
                self._tell()
                try:
                    self._settled.wait_for(lambda: not self.accepts or not self.pending, limit)
                finally:
                    self._in_a_hurry -= 1
            return self.accepts and not self.pending

    def _tell(self) -> None:
        self._events += 1
        self._news.notify_all()

    def _device_is_idle(self) -> None:
        if self._built or self._pacing:
            with self.lock:
                self._tell()

    def _work_until_closed(self) -> None:
        try:
            while not self._closing:
                with self.lock:
                    seen = self._events
                pause = self._do_something()
                if pause:
                    self._rest(seen, pause)
        except BaseException as error:
            self._crashed(error)

    def _rest(self, seen: int, pause: float) -> None:
        """Until there is news, or for `pause` seconds."""
        began = time.perf_counter()
        with self.lock:
            limit = None if pause == UNTIL_NEWS else pause
            self._news.wait_for(lambda: self._closing or self._events != seen, limit)
        if self._pacing:
            self.pacing_seconds += time.perf_counter() - began

    def _do_something(self) -> float:
        """Check a graph if the device is free and it is time, else build one. How long to rest then: not at all if
        something was done."""
        self._pacing = False
        with self.lock:
            built = self._built[0] if self._built else None
            queued = self._queue[0] if self._queue else None
        until_check = UNTIL_NEWS if built is None else self._until_next_check()
        if built is not None and until_check == 0:
            if self._turns.take_if_idle():
                self._due_since = None
                if built.state is State.BUILT:
                    self._check(built)
                else:  # renewed in the meantime
                    self._turns.give_back_gate()
                return 0
            until_check = self._until_turn()
            if until_check == 0:
                self._check_in_turn(built)
                return 0
        if queued is None:
            return until_check
        pause = self._until_next_build()
        if pause > 0:
            return min(pause, until_check)
        with self._building:
            done = queued.state is not State.QUEUED or self._build(queued)
        return 0 if done else until_check

    def _until_next_check(self) -> float:
        """Seconds, unless a request ends before: then it may be at once."""
        if self._in_a_hurry:
            return 0
        idle = self._turns.idle
        return self._allowance.pause() or (0 if idle is None else until_good_moment(idle))

    def _until_turn(self) -> float:
        """Seconds until a trial that finds the device taken every time waits no longer for a gap."""
        now = time.perf_counter()
        if self._due_since is None:
            self._due_since = now
        return max(0.0, self._due_since + TURN_AFTER - now)

    def _check_in_turn(self, runner: SegmentRunner) -> None:
        """A trial that has its place in the queue and gives way to nobody."""
        self._due_since = None
        with suppress(SessionClosed), self._turns.between():
            if runner.state is State.BUILT:
                self.checks_in_turn += 1
                self._insisting = True
                try:
                    self._check(runner)
                finally:
                    self._insisting = False

    def _until_next_build(self) -> float:
        """Seconds. Says first that it waits, then looks: so the last request cannot leave unnoticed in between."""
        now = time.perf_counter()
        self._pacing = True
        if self._turns.serving:
            pause = self._built_last + BUILD_SPACING - now
            if pause <= 0 and self._launching:
                self._held_since = self._held_since or now
                pause = self._held_since + BUILD_SPACING - now
            if pause > 0:
                return pause
        self._pacing = False
        self._held_since = None
        return 0

    def _build(self, runner: SegmentRunner) -> bool:
        """False if there is no room yet: others are being checked or used."""
        amount = runner.bytes_wanted
        if amount is None:
            amount = self._backend.graph_bytes(len(runner.launches))
        if amount > self.budget.limit:
            self._refuse(runner, self._too_large(amount))
            return True
        if not self._make_room(runner, amount):
            return False
        beside = self._turns.serving
        began = time.perf_counter()
        pause = partial(self._give_way, began + BUILD_SPACING)
        self._napped = 0.0
        try:
            graph = self._backend.build(runner.phase, runner.launches, runner.bucket, pause)
        except BackendRefused as refused:
            self._refuse(runner, str(refused))
        except Exception as error:
            self._refuse(runner, f"the build failed with {type(error).__name__}: {error}")
        else:
            self._admit(runner, graph)
        self._built_last = time.perf_counter()
        self._count_build(self._built_last - began - self._napped, beside)
        return True

    def _give_way(self, until: float) -> None:
        """While a step is being launched, its thread needs the interpreter more than a build does."""
        began = time.perf_counter()
        while self._launching and not self._closing and time.perf_counter() < until:
            time.sleep(NAP)
        self._napped += time.perf_counter() - began

    def _count_build(self, seconds: float, beside: bool) -> None:
        with self.lock:
            self.build_seconds += seconds
            self.longest_build = max(self.longest_build, seconds)
            self.builds_beside_requests += beside

    def _make_room(self, runner: SegmentRunner, amount: int) -> bool:
        """Evict until `amount` fits, and count it as held by `runner`."""
        self.settle()
        with self.lock:
            self.budget.drop(runner)
            victims = self.budget.victims(amount)
            self._starved = victims is None
            if victims is None:
                return False
            graphs = [victim.evict() for victim in victims]
            self.budget.evictions += len(victims)
        for victim, graph in zip(victims, graphs, strict=True):
            self._release(victim, graph)
        with self.lock:
            self.budget.hold(runner, amount)
        return True

    def _admit(self, runner: SegmentRunner, graph: Graph) -> None:
        """A graph was built: keep it if what it really holds fits as well."""
        runner.bytes_wanted = graph.bytes
        if graph.bytes > self.budget.limit:
            self._backend.release(graph)
            self._refuse(runner, self._too_large(graph.bytes))
        elif not self._make_room(runner, graph.bytes):
            self._release(runner, graph)  # it stays first in the queue, its size now known
        else:
            with self.lock:
                self.builds += 1
                self._queue.remove(runner)
                runner.built(graph)
                self._built.append(runner)

    def _too_large(self, amount: int) -> str:
        return f"its graph needs {amount} bytes, the whole budget for graphs is {self.budget.limit}"

    def _refuse(self, runner: SegmentRunner, why: str) -> None:
        with self.lock:
            self.build_failures += 1
            self.budget.drop(runner)
            self._queue.remove(runner)
            runner.refuse(why)
            self._settled.notify_all()

    def _check(self, runner: SegmentRunner) -> None:
        """The worker holds the device."""
        began, least, hurried = time.perf_counter(), 0.0, self._in_a_hurry > 0
        try:
            self._judge(runner)
        except Interrupted:
            least = CUT_SHORT
            with self.lock:
                self.aborted_checks += 1
                runner.aborted_checks += 1
        finally:
            seconds = time.perf_counter() - began
            self.check_seconds += seconds
            if not hurried:  # who waits for the graphs wants them now, and no requests in their place
                self._allowance.spend(max(seconds, least))
            self._turns.give_back_gate()

    def _judge(self, runner: SegmentRunner) -> None:
        graph = runner.graph
        assert graph is not None
        insist = self._insisting or runner.aborted_checks >= PATIENCE
        self.insisted_checks += insist
        try:
            report = self._try(runner, graph, partial(self._must_stop, insist))
        except Interrupted:
            raise
        except Exception as error:
            report = {"why": f"its check failed with {type(error).__name__}: {error}"}
        if report is None and self._gate.left(runner):
            return
        self._gate.forget(runner)
        with self.lock:
            self._built.remove(runner)
            if report is None:
                self._clock += 1
                runner.last_use = self._clock
                runner.promote()
                self._settled.notify_all()
                return
            graph = runner.quarantine(report)
        self._release(runner, graph)
        with self.lock:
            self._settled.notify_all()

    def _try(self, runner: SegmentRunner, graph: Graph, stop: Callable[[], bool]) -> dict[str, Any] | None:
        if not self._backend.thread_pools:
            return self._gate.check(runner, graph, stop)
        # On a thread that ends with the check: OpenMP keeps a pool for each thread that ever computed, and with two
        # pools on few cores libgomp sends both to sleep early, so that every later request runs slower.
        with ThreadPoolExecutor(1, "hjgc-capture-check") as thread:
            return thread.submit(self._gate.check, runner, graph, stop).result()

    def _must_stop(self, insist: bool) -> bool:
        return self._closing or (self._turns.wanted and not insist)

    def _release(self, runner: SegmentRunner, graph: Graph) -> None:
        self._backend.release(graph)
        with self.lock:
            self.budget.drop(runner)

    def _crashed(self, error: BaseException) -> None:
        """Requests go on plainly; what was queued is warm again, what serves goes on serving."""
        with self.lock:
            self.state = f"crashed: {type(error).__name__}: {error}"
            for runner in self._queue:
                runner.unqueue()
            for runner in self._built:
                runner.sample = None  # nobody will check it
            self._queue.clear()
            self._settled.notify_all()

    def numbers(self) -> dict[str, Any]:
        """What it did so far. Called under the lock."""
        return {
            "state": self.state,
            "queued": len(self._queue),
            "unchecked": len(self._built),
            "builds": self.builds,
            "renewed": self.renewed,
            "retired": self.retired,
            "builds_beside_requests": self.builds_beside_requests,
            "build_seconds": round(self.build_seconds, 6),
            "longest_build": round(self.longest_build, 6),
            "pacing_seconds": round(self.pacing_seconds, 6),
            "build_failures": self.build_failures,
            "check_seconds": round(self.check_seconds, 6),
            "checks_paused_for": round(self._allowance.pause(), 3),
            "checked_on": self._backend.digests_on,
            "aborted_checks": self.aborted_checks,
            "insisted_checks": self.insisted_checks,
            "checks_in_turn": self.checks_in_turn,
        }


class _FineSwitching:
    """The interpreter's switch interval while any worker runs; what it was before, after the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers = 0
        self._before = 0.0

    def begin(self) -> None:
        with self._lock:
            if self._workers == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_INTERVAL)
            self._workers += 1

    def end(self) -> None:
        with self._lock:
            self._workers -= 1
            if self._workers == 0:
                sys.setswitchinterval(self._before)


_fine_switching = _FineSwitching()
