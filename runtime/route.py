"""Does a segment go as a graph, plainly, or through the host?

Islands divide what they lie between, by the plan. Where graphs can hold them, the segments around are one here, with
one graph; should there be none for it, each goes by itself.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, Phase, Plan, Schedule, StaticSegment
from hjgc.runtime.backend import Backend, BackendRefused, Callback, LogitsProcessor, MemoryRef, Rows
from hjgc.runtime.errors import SessionClosed
from hjgc.runtime.functions import Functions, callback_of
from hjgc.runtime.islands import island_launches
from hjgc.runtime.runner import HOPELESS, DynamicRunner, SegmentRunner, State, Stretch
from hjgc.runtime.samples import Sample
from hjgc.runtime.worker import CaptureWorker

Stop = Callable[[], bool]

T = TypeVar("T")

MOST_SIZES = 64
"""Tuples of sizes for which a segment of a function has runners."""


@dataclass
class Ahead:
    """What became of launching steps ahead: `overruns` were launched for nobody, `failed` did not start; `off` counts
    the steps before which it was not tried, by reason."""

    steps: int = 0
    overruns: int = 0
    failed: int = 0
    off: Counter[str] = field(default_factory=lambda: Counter[str]())


class StaticRoute:
    """One static segment: a runner for each bucket. `barred`: why none may have a graph, if so."""

    def __init__(self, stretch: Stretch, buckets: tuple[int, ...], low: int, barred: str = "") -> None:
        """`low`: the fewest rows of a call."""
        self.launches, self.buckets, self.barred = stretch.launches, buckets, barred
        first = [low, *(bucket + 1 for bucket in buckets)]
        self.runners = [
            SegmentRunner(stretch, bucket, max(shortest, -(-bucket // 2)), barred)
            for bucket, shortest in zip(buckets, first, strict=False)
        ]

    def runner(self, rows: Rows) -> SegmentRunner | None:
        """That of the smallest bucket that holds so many rows; None if there is none or it would be over half empty."""
        assert isinstance(rows, int), "a phase of rows"
        number = bisect_left(self.buckets, rows)
        if number == len(self.buckets) or self.buckets[number] > 2 * rows:
            return None
        return self.runners[number]


class ExactRoute:
    """One static segment of a function: a runner for each tuple of sizes that calls had lately, made when it is asked
    for. `retire` gives up an old one, if that may be; `barred` is why none may have a graph, if so."""

    def __init__(self, stretch: Stretch, retire: Callable[[SegmentRunner], bool], barred: str) -> None:
        self.launches = stretch.launches
        self._stretch, self._retire, self.barred = stretch, retire, barred
        self._runners: OrderedDict[Rows, SegmentRunner] = OrderedDict()

    @property
    def runners(self) -> list[SegmentRunner]:
        """That of the last call comes last. From any thread."""
        return list(self._runners.values())

    def runner(self, rows: Rows) -> SegmentRunner | None:
        """That of these sizes; None if all that there may be are still to be settled."""
        if rows not in self._runners:
            if len(self._runners) >= MOST_SIZES and not self._make_room():
                return None
            self._runners[rows] = SegmentRunner(self._stretch, rows, rows, self.barred)
        self._runners.move_to_end(rows)
        return self._runners[rows]

    def _make_room(self) -> bool:
        oldest = next((rows for rows, runner in self._runners.items() if self._retire(runner)), None)
        if oldest is None:
            return False
        del self._runners[oldest]
        return True


class JoinedRoute:
    """Segments that islands divide which graphs can hold, as one; `parts` serve where that may have no graph."""

    def __init__(self, whole: StaticRoute | ExactRoute, parts: Sequence[Route]) -> None:
        self.whole, self.parts = whole, tuple(parts)

    def serving(self, rows: Rows) -> Sequence[Route]:
        runner = self.whole.runner(rows)
        return self.parts if runner is not None and runner.state in HOPELESS else (self.whole,)

    @property
    def is_divided(self) -> bool:
        """Do the parts serve some rows, or did they?"""
        served = any(part.runs for part in self.parts if isinstance(part, DynamicRunner))
        return served or any(runner.state in HOPELESS for runner in self.whole.runners)


Route = StaticRoute | ExactRoute | DynamicRunner


@dataclass(eq=False)
class Step:
    """A step on its way: `used` are the runners whose graphs it uses, `at` is the last segment that was begun, `ticket`
    what its token is read with once it was sent for. Nobody wants the token of one that is `abandoned`. A call of a
    function is one step; `sample` are its arguments if graphs are to be made for it."""

    used: list[SegmentRunner]
    ticket: Any = None
    abandoned: bool = False
    at: Route | None = None
    sample: Sample | None = None


class Router:
    """Runs schedules on the device, one step behind the other. The graphs of a step are not evicted before its token
    has come, or that of a later one: the device keeps the order."""

    def __init__(self, plan: Plan, backend: Backend, worker: CaptureWorker, functions: Functions) -> None:
        self._backend, self._worker, self.functions = backend, worker, functions
        self._busy = threading.Lock()
        self._flying = threading.Lock()
        self._in_flight: list[Step] = []
        self._closed = False
        self.outside_buckets = self.device_errors = 0
        self.ahead = Ahead()
        self._islands = {phase.name: island_launches(phase) for phase in plan.phases}
        self._serving = {
            (phase.name, schedule.name): self._joined(phase, schedule)
            for phase in plan.phases
            for schedule in phase.schedules
        }
        self.lacks: Callable[[str, int], None] = lambda phase, rows: None
        worker.settle = self._settle

    def _joined(self, phase: Phase, schedule: Schedule) -> tuple[Route | JoinedRoute, ...]:
        """The routes of a schedule, those joined that may be."""
        routes = list(_routes(phase, schedule, self._worker.retire))
        found: list[Route | JoinedRoute] = []
        for joins, group in groupby(enumerate(schedule.segments), lambda pair: self._may_join(phase, pair[1])):
            numbers = [number for number, _ in group]
            parts = [routes[number] for number in numbers]
            whole = _whole(phase, schedule, numbers, parts, self._worker.retire) if joins else None
            found += parts if whole is None else [JoinedRoute(whole, parts)]
        return tuple(found)

    def _may_join(self, phase: Phase, segment: StaticSegment | DynamicSegment) -> bool:
        """Of a decoder's phases each row is computed alone, islands included: a bucket's graph may compute more of them
        than count."""
        if isinstance(segment, StaticSegment):
            return True
        if _unrepeatable(segment) or not self._islands[phase.name].issuperset(segment.launches):
            return False
        low, high = token_range(phase)
        padded = phase.entry != "function" and low != high
        return not any(self._backend.graphless(phase.name, number, padded=padded) for number in segment.launches)

    def has_schedule(self, phase: str, schedule: str) -> bool:
        return (phase, schedule) in self._serving

    @property
    def routes(self) -> dict[tuple[str, str], tuple[Route, ...]]:
        """By phase and schedule; of joined segments the whole, and the parts once that may have no graph."""
        return {place: tuple(_opened_up(routes)) for place, routes in self._serving.items()}

    @property
    def runners(self) -> list[SegmentRunner]:
        """That of every bucket of every static segment, of a function of every tuple of sizes."""
        routes = [route for routes in self._serving.values() for route in _opened_up(routes, entirely=True)]
        return [runner for route in routes if not isinstance(route, DynamicRunner) for runner in route.runners]

    def close(self) -> None:
        """Wait for the steps in progress and let no other begin."""
        with self._busy:
            self._closed = True
            if self._in_flight:
                self.drain()

    @contextmanager
    def turn(self) -> Generator[None]:
        """The time in which one caller launches steps and reads what they give. The driver's refusals become RunErrors;
        whatever goes wrong, no step is in flight afterwards."""
        with self._busy:
            if self._closed:
                raise SessionClosed()
            try:
                yield
            except BackendRefused as refused:
                self.device_errors += 1
                self.drain()
                raise RunError(f"the device refused to run the step: {refused}") from refused
            except BaseException:
                self.drain()
                raise

    def most_rows(self, phase: str, rows: int, *, ask: bool) -> int:
        """How many of these rows one call of the phase may have now. To `ask` is to have the code for all of them built
        if it is not there. Raises RunError where that is not allowed."""
        most = self._backend.most_rows(phase, rows)
        if most < rows and ask:
            self.lacks(phase, rows)
        if not most:
            raise RunError(f"expected kernels of {phase} for {rows} rows, found none built; compile the model again")
        return most

    def begin(self) -> Step:
        """A step: what is run with it is launched behind all steps before it."""
        self._worker.launching(True)
        step = Step([])
        with self._flying:
            self._in_flight.append(step)
        return step

    def send(self, step: Step) -> None:
        """All of the step is launched: have its token sent to the host."""
        step.ticket = self._backend.send_token()
        self._worker.launching(False)

    def finish(self, step: Step, read: Callable[[], T]) -> T:
        """All of a call is launched: what `read` gives, once the device is done with it."""
        self._worker.launching(False)
        found = read()
        self._put_back(step)
        return found

    def read(self, step: Step) -> int:
        """The token of a step, once it is there."""
        token = self._backend.read_token(step.ticket)
        self._put_back(step)
        return token

    def abandon(self, step: Step) -> None:
        """Nobody will read the token. The device finishes the step; who comes next is served behind it."""
        step.abandoned = True
        self._worker.step_abandoned()

    def _put_back(self, last: Step | None) -> None:
        """The device is done with every step up to `last`; with all if None."""
        with self._flying:
            if last is not None and last not in self._in_flight:
                return
            count = len(self._in_flight) if last is None else self._in_flight.index(last) + 1
            done, self._in_flight = self._in_flight[:count], self._in_flight[count:]
        self._worker.put_back([runner for step in done for runner in step.used])

    def _settle(self) -> None:
        """For the worker, who needs the graphs: wait for the steps that nobody else waits for."""
        with self._flying:
            abandoned = [step for step in self._in_flight if step.abandoned]
        if abandoned:
            with suppress(BackendRefused):  # whoever uses the device next meets the error again
                self._backend.read_token(abandoned[-1].ticket)
            self._put_back(abandoned[-1])

    def drain(self) -> None:
        """Wait for everything that was launched, since not all of it will be read back; its graphs are free then."""
        with suppress(Exception):  # the step has failed already, with the error that matters
            self._backend.snapshot([MemoryRef("parameters", 0)], 0, 1)
        self._worker.launching(False)
        self._put_back(None)

    def run(
        self,
        phase: str,
        schedule: str,
        tokens: Rows,
        start: int,
        process: LogitsProcessor | None,
        stop: Stop,
        step: Step,
    ) -> bool:
        """Run every segment of a schedule for `tokens` rows behind `start` cached ones. False if `stop` said so."""
        for route in self._chosen(phase, schedule, tokens):
            step.at = route
            if stop():
                return False
            if isinstance(route, DynamicRunner):
                done = self._run_dynamic(route, tokens, process, stop)
            else:
                done = self._run_static(phase, route, tokens, start, stop, step)
            if not done:
                return False
        return True

    def waits(self, phase: str, schedule: str, rows: Rows) -> bool:
        """Would a call now wait for the device at an island, since no graph holds it?"""
        return any(self._waits_at(phase, route, rows) for route in self._chosen(phase, schedule, rows))

    def _waits_at(self, phase: str, route: Route, rows: Rows) -> bool:
        if isinstance(route, DynamicRunner):
            return any(number in self._islands[phase] for _, launches in route.pieces for number in launches)
        runner = route.runner(rows)
        replays = runner is not None and runner.state is State.PROMOTED
        return not replays and not self._islands[phase].isdisjoint(route.launches)

    def _chosen(self, phase: str, schedule: str, rows: Rows) -> Iterator[Route]:
        """What runs for so many rows."""
        for route in self._serving[phase, schedule]:
            if isinstance(route, JoinedRoute):
                yield from route.serving(rows)
            else:
                yield route

    def _run_static(
        self, phase: str, route: StaticRoute | ExactRoute, tokens: Rows, start: int, stop: Stop, step: Step
    ) -> bool:
        runner = route.runner(tokens)
        graph = None if runner is None else self._worker.take(runner)
        if runner is not None and graph is not None:
            step.used.append(runner)
            self._backend.replay(graph, tokens)
            return True
        if not self._backend.run(phase, route.launches, tokens, stop):
            return False
        if runner is None:
            self.outside_buckets += 1
        else:
            self._worker.ran_plainly(runner, start, step.sample)
        return True

    def asks(self, phase: str, schedule: str, rows: Rows) -> bool:
        """Would a call ask for graphs that its arguments are needed to check?"""
        routes = [route for route in self._chosen(phase, schedule, rows) if isinstance(route, ExactRoute)]
        runners = [runner for route in routes if (runner := route.runner(rows)) is not None]
        return any(map(self._worker.may_ask, runners))

    def _run_dynamic(self, runner: DynamicRunner, tokens: Rows, process: LogitsProcessor | None, stop: Stop) -> bool:
        for callback, launches in runner.pieces:
            if callback is not None:
                function = self._function(runner, callback, process)
                assert isinstance(tokens, int), "a function calls none of the caller's"
                for launch in launches:
                    self._backend.call_host(runner.phase, launch, tokens, function)
            elif not self._backend.run(runner.phase, launches, tokens, stop):
                return False
        runner.runs += 1
        return True

    def _function(self, runner: DynamicRunner, callback: str, process: LogitsProcessor | None) -> Callback:
        if callback != LOGITS_PROCESSOR:
            return self.functions.get(callback)
        if process is None:
            where = f"{runner.phase}/{runner.schedule}"
            raise RunError(f"expected a logits processor, which {where} calls, found none; pass process=")
        return process


def token_range(phase: Phase) -> tuple[int, int]:
    """The fewest and the most tokens that the phase takes in one call."""
    for size in phase.sizes:
        if size.name == "tokens":
            return max(1, size.low), size.high
    return 1, 1


def _routes(phase: Phase, schedule: Schedule, retire: Callable[[SegmentRunner], bool]) -> Iterator[Route]:
    barred, (low, _) = "", token_range(phase)
    for number, segment in enumerate(schedule.segments):
        if isinstance(segment, DynamicSegment):
            yield DynamicRunner(phase.name, schedule.name, number, _pieces(phase, segment), segment.reasons)
            barred = barred or _unrepeatable(segment)
            continue
        stretch = Stretch(phase.name, schedule.name, number, segment.launches)
        if phase.entry == "function":
            yield ExactRoute(stretch, retire, barred)
        else:
            yield StaticRoute(stretch, segment.key.buckets, low, barred)


def _whole(
    phase: Phase,
    schedule: Schedule,
    numbers: Sequence[int],
    parts: Sequence[Route],
    retire: Callable[[SegmentRunner], bool],
) -> StaticRoute | ExactRoute | None:
    """These segments as one; None where there is nothing to join, or their graphs are for other rows."""
    static = [part for part in parts if not isinstance(part, DynamicRunner)]
    if len(static) == len(parts) or not static:
        return None
    launches = tuple(n for number in numbers for n in schedule.segments[number].launches)
    stretch = Stretch(phase.name, schedule.name, numbers[0], launches, numbers[-1])
    if phase.entry == "function":
        return ExactRoute(stretch, retire, static[0].barred)
    low, high = token_range(phase)
    buckets, *others = {part.buckets for part in static if isinstance(part, StaticRoute)}
    if others or max(buckets) > high:  # an island computes every row of a bucket
        return None
    return StaticRoute(stretch, buckets, low, static[0].barred)


def _opened_up(routes: Sequence[Route | JoinedRoute], *, entirely: bool = False) -> Iterator[Route]:
    """Joined routes followed by their parts: where those serve, or all."""
    for route in routes:
        if not isinstance(route, JoinedRoute):
            yield route
            continue
        yield route.whole
        if entirely or route.is_divided:
            yield from route.parts


def _unrepeatable(segment: DynamicSegment) -> str:
    """Why no graph of a later segment may be checked: to run this one again would change what it draws next."""
    drawn = next((reason for reason in segment.reasons if reason.code is ReasonCode.RANDOM), None)
    return "" if drawn is None else f"a check would draw the random numbers of {' <- '.join(drawn.chain)}"


def _pieces(phase: Phase, segment: DynamicSegment) -> tuple[tuple[str | None, tuple[int, ...]], ...]:
    groups = groupby(segment.launches, key=lambda number: callback_of(phase.launches[number]))
    return tuple((callback, tuple(launches)) for callback, launches in groups)
