"""What serves a plan that is a function: named arrays in, named arrays out?"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Plan, Port
from hjgc.runtime.backend import FunctionBackend, Rows, Value
from hjgc.runtime.call_inputs import CallInputs
from hjgc.runtime.errors import Cancelled, DeadlineExceeded
from hjgc.runtime.functions import Functions
from hjgc.runtime.gate import Gate
from hjgc.runtime.report import flat_numbers, make_report
from hjgc.runtime.route import Route, Router, Step
from hjgc.runtime.runner import DynamicRunner
from hjgc.runtime.samples import Samples
from hjgc.runtime.session import GRAPH_BYTES
from hjgc.runtime.supply import CodeSource, Supply
from hjgc.runtime.turns import Ticket, Turns
from hjgc.runtime.worker import CaptureWorker

PHASE, SCHEDULE = "call", "default"


class Function:
    """Runs a plan that is a function. `function(inputs)` takes arrays by name and returns arrays by name.

    The first call of some sizes runs launch by launch; behind the calls graphs of its static segments are captured for
    just these sizes, checked, and serve the next ones with the same bits. `graph_bytes` is the device memory that
    graphs may hold together; `capture=False` builds none. The function owns the backend and closes it; `source` says
    what of the plan's device code is there and has the rest built.

    Threads. Every method may be called from any thread; calls have the device one at a time, first come first served.
    One background thread builds and checks graphs, as for a session. `close()` waits for the call in progress; those
    that wait for the device get SessionClosed."""

    def __init__(
        self,
        plan: Plan,
        backend: FunctionBackend,
        *,
        graph_bytes: int = GRAPH_BYTES,
        capture: bool = True,
        source: CodeSource | None = None,
    ) -> None:
        if graph_bytes < 0:
            raise RunError(f"expected a budget of 0 bytes or more for graphs, found {graph_bytes}")
        self.plan, self._backend = plan, backend
        self._phase = plan.phase(PHASE)
        self._inputs = CallInputs(self._phase)
        self._samples = Samples()
        self._turns = Turns()
        self._worker = CaptureWorker(backend, Gate(plan, backend), self._turns, graph_bytes)
        self._router = Router(plan, backend, self._worker, Functions(plan, {}))
        self._supply = None if source is None else Supply(source, self._turns, self._router, self._worker)
        self._closing = threading.Lock()
        self._closed = False
        self._begun: list[Ticket] = []
        self.calls = 0
        """Those that gave their results."""
        if capture:
            self._worker.start()
        if self._supply is not None:
            self._supply.start()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What a call takes: name, ONNX type, shape."""
        return self._phase.arguments

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What a call gives."""
        return self._phase.results

    def __call__(self, inputs: Mapping[str, Any], *, deadline: float | None = None) -> dict[str, Any]:
        """The outputs by name, each a new array (a list of arrays for a sequence, None for an absent optional).

        `inputs` are arrays, or what numpy makes arrays of; `deadline` is in seconds from now, waiting for other calls
        included. Raises RunError for inputs that do not fit the plan, naming the first, and for an island that fails;
        Cancelled; DeadlineExceeded; SessionClosed. The function may be called again after any of the first four."""
        if deadline is not None and math.isnan(deadline):
            raise RunError("expected a deadline in seconds from now, found nan")
        rows, values = self._inputs.check(inputs)
        ticket = Ticket(deadline)
        self._begun.append(ticket)
        try:
            found = self._in_turn(ticket, rows, values)
        finally:
            self._begun.remove(ticket)
        return {port.name: value for port, value in zip(self._phase.results, found, strict=True)}

    def cancel(self) -> None:
        """End the call that came first of those under way, between two launches, inside of an island or while it waits
        for the device; it raises Cancelled."""
        for ticket in self._begun[:1]:
            self._turns.cancel(ticket)

    def _in_turn(self, ticket: Ticket, rows: Rows, values: list[Value]) -> list[Value]:
        self._turns.take(ticket)
        ended_by: type[BaseException] | None = None
        try:
            with self._router.turn():
                return self._run(ticket, rows, values)
        except BaseException as error:
            ended_by = type(error)
            raise
        finally:
            self._turns.give_back(ticket, ended_by)

    def _run(self, ticket: Ticket, rows: Rows, values: list[Value]) -> list[Value]:
        """A call that has the device."""
        step = self._router.begin()
        if self._router.asks(PHASE, SCHEDULE, rows):
            step.sample = self._samples.take(values)
        try:
            self._backend.write_arguments(PHASE, rows, values)
            if not self._router.run(PHASE, SCHEDULE, rows, 0, None, lambda: ticket.stopped, step):
                raise _stopped(ticket, step)
            found = self._router.finish(step, lambda: self._backend.read_results(PHASE, rows))
        finally:
            self._backend.end_call()
        self.calls += 1
        return found

    def wait_captured(self, timeout: float | None = None) -> bool:
        """Wait until every segment that calls asked for is promoted, refused or quarantined. False after `timeout`
        seconds, and at once where nobody captures: `capture=False`, worker crashed, function closed."""
        return self._worker.wait(timeout)

    def wait_built(self, timeout: float | None = None) -> bool:
        """Wait until no code is left to build, or to take in. False after `timeout` seconds."""
        return self._supply is None or self._supply.wait(timeout)

    def report(self) -> dict[str, Any]:
        """What a session's report holds, and `calls`; of each static segment an entry for each tuple of sizes that
        calls had lately, its `key`. JSON-able."""
        memory = self._backend.memory()
        report = make_report(self.plan.model.name, self._backend.name, self._router, self._worker, self._turns, memory)
        code = None if self._supply is None else self._supply.report()
        return {**report, "islands": self._backend.islands(), "code": code, "calls": self.calls}

    def metrics(self) -> dict[str, int | float]:
        """The numbers of the report, flat, by dotted name."""
        report = self.report()
        return {**flat_numbers(report), "calls": report["calls"]}

    @property
    def backend(self) -> FunctionBackend:
        """The device, for who measures it while nothing is called."""
        return self._backend

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Give all memory back. May be called twice."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._turns.close()
            self._router.close()
            if self._supply is not None:
                self._supply.close()
            try:
                self._worker.close()
            finally:
                self._backend.close()

    def __enter__(self) -> Function:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stopped(ticket: Ticket, step: Step) -> RunError:
    """Why a call ended early, and where."""
    where = "before its first segment" if step.at is None else f"in {_named(step.at)}"
    if ticket.cancelled:
        return Cancelled(f"the call was cancelled {where}")
    return DeadlineExceeded(f"the deadline passed {where}")


def _named(route: Route) -> str:
    """A segment in words; of a dynamic one its nodes."""
    if not isinstance(route, DynamicRunner):
        return "a static segment"
    chains = "; ".join(" <- ".join(reason.chain) for reason in route.reasons[:3])
    return f"a dynamic segment ({chains})"
