"""What serves one plan on one device?"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.backend import Backend, HostFunction, LogitsProcessor
from hjgc.runtime.errors import SessionClosed
from hjgc.runtime.functions import Functions
from hjgc.runtime.gate import Gate
from hjgc.runtime.report import flat_numbers, make_report
from hjgc.runtime.request import Request
from hjgc.runtime.route import Router
from hjgc.runtime.supply import CodeSource, Supply
from hjgc.runtime.trace import Trace, Watched
from hjgc.runtime.turns import Turns
from hjgc.runtime.worker import CaptureWorker

PHASES = ("prefill", "decode")
GRAPH_BYTES = 256 << 20
NO_FUNCTIONS: Mapping[str, HostFunction] = MappingProxyType({})


class Session:
    """Serves requests with a plan, at once by plain launches, and by graphs as they are captured and checked behind.

    The session owns the backend from here on and closes it. `graph_bytes` is the device memory that graphs may hold
    together; `capture=False` builds none.

    Threads. Every method may be called from any thread. One request has the device at a time; the others wait, first
    come first served. A request belongs to one thread at a time, except `Request.cancel()`, `cancelled` and `expired`.
    One background thread builds graphs while requests run, and compares each with the plain run while none runs or
    waits; a request that comes meanwhile makes it give up and try again later (see `worker.PATIENCE` for the one
    exception). No lock is held while it builds. `close()` waits for the step and the build in progress, not for the
    request: that one gets SessionClosed at its next step, and so do those who wait.

    `source` says what of the plan's device code is there and has the rest built, in another process; it is taken in
    between two requests. `functions` are those that the plan calls by name, as for `register`. Raises RunError for a
    plan that it cannot serve, and for a function that the plan does not call."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        *,
        graph_bytes: int = GRAPH_BYTES,
        capture: bool = True,
        source: CodeSource | None = None,
        functions: Mapping[str, HostFunction] = NO_FUNCTIONS,
    ) -> None:
        _check_plan(plan, backend)
        if graph_bytes < 0:
            raise RunError(f"expected a budget of 0 bytes or more for graphs, found {graph_bytes}")
        self.plan = plan
        self._backend = backend
        self._turns = Turns()
        self._worker = CaptureWorker(backend, Gate(plan, backend), self._turns, graph_bytes)
        self._functions = Functions(plan, functions)
        self._router = Router(plan, backend, self._worker, self._functions)
        self._supply = None if source is None else Supply(source, self._turns, self._router, self._worker)
        self.watcher: Trace | None = None
        """The trace that watches, if one does."""
        self._closing = threading.Lock()
        self._closed = False
        if capture:
            self._worker.start()
        if self._supply is not None:
            self._supply.start()

    def register(self, name: str, function: HostFunction) -> None:
        """Have the plan call this function under this name from now on. It gets the rows [M, H] of one call (a part of
        a prompt, or one token) as float32, its own to change, and returns None or others of the same shape. It runs in
        the thread of the request, between two launches: it must not use the session. Raises RunError."""
        self._functions.register(name, function)

    def request(
        self, *, process: LogitsProcessor | None = None, logits: bool = False, deadline: float | None = None
    ) -> Request:
        """A request, to be used as a context manager. `process` changes the logits of every step on the host; `logits`
        lets the caller read them after each; with either, no step is launched ahead. `deadline` is in seconds from now.
        Raises RunError, also where the plan calls a function that nobody registered."""
        if self._closed:
            raise SessionClosed()
        if deadline is not None and math.isnan(deadline):
            raise RunError("expected a deadline in seconds from now, found nan")
        self._functions.check()
        for phase in PHASES if process is not None else ():
            if not self._router.has_schedule(phase, "logits_processor"):
                raise RunError(
                    f"expected a plan with a schedule 'logits_processor' for {phase}, found none; compile the model "
                    "again with this hjgc, or leave process out"
                )
        return Request(self.plan, self._backend, self._turns, self._router, process, logits, deadline)

    def wait_captured(self, timeout: float | None = None) -> bool:
        """Wait until every segment that traffic asked for is promoted, refused or quarantined. False after `timeout`
        seconds, and at once where nobody captures: `capture=False`, worker crashed, session closed.

        Graphs are checked only while no request is active: called inside a request, it waits for its timeout."""
        return self._worker.wait(timeout)

    def wait_built(self, timeout: float | None = None) -> bool:
        """Wait until no code is left to build, or to take in. False after `timeout` seconds.

        Code is taken in between two requests: called inside a request, it waits for its timeout."""
        return self._supply is None or self._supply.wait(timeout)

    def report(self) -> dict[str, Any]:
        """Every segment with its state, hits, bytes and reasons, the worker, the budget, the requests, the steps
        launched ahead, the memory, what islands cost, the code that serves and what was built since: JSON-able."""
        memory = self._backend.memory()
        report = make_report(self.plan.model.name, self._backend.name, self._router, self._worker, self._turns, memory)
        code = None if self._supply is None else self._supply.report()
        return {**report, "islands": self._backend.islands(), "code": code}

    def trace(self) -> Trace:
        """A trace of what the session does from its `start` on, or within its `with` block, to be saved as a timeline:
        requests, segments launched or replayed, waits, builds, checks, evictions. Costs nothing when none runs."""
        return Trace(self._watched())

    @property
    def backend(self) -> Backend:
        """The device, for who measures it while no request is open. Requests go through `request`."""
        return self._backend

    def _watched(self) -> Watched:
        return Watched(self, self._backend, self._turns, self._router, self._worker)

    @property
    def closed(self) -> bool:
        return self._closed

    def metrics(self) -> dict[str, int | float]:
        """The numbers of the report, flat, by dotted name."""
        return flat_numbers(self.report())

    def close(self) -> None:
        """End service and give all memory back. May be called twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._turns.close()
            self._router.close()
            watcher = self.watcher
            if watcher is not None:
                watcher.stop()
            if self._supply is not None:
                self._supply.close()
            try:
                self._worker.close()
            finally:
                self._backend.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_plan(plan: Plan, backend: Backend) -> None:
    found = [phase.name for phase in plan.phases]
    for name in PHASES:
        if name not in found:
            raise RunError(
                f"expected a plan with the phases {' and '.join(PHASES)}, found {', '.join(found) or 'none'}: it has "
                f"no {name}; compile the model again with this hjgc"
            )
    if backend.name not in plan.targets:
        raise RunError(
            f"expected a plan for {backend.name}, found one for {', '.join(plan.targets)}; compile it again with "
            f"--target {backend.name}"
        )
