"""Does a segment go as a graph, plainly, or through the host?"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import DynamicSegment, Phase, Plan, Schedule, StaticSegment
from hjgc.runtime.backend import Backend, BackendRefused, LogitsProcessor, MemoryRef
from hjgc.runtime.errors import SessionClosed
from hjgc.runtime.gate import on_host
from hjgc.runtime.runner import DynamicRunner, SegmentRunner
from hjgc.runtime.worker import CaptureWorker

Stop = Callable[[], bool]


class StaticRoute:
    """One static segment: a runner for each bucket."""

    def __init__(self, phase: Phase, schedule: str, number: int, segment: StaticSegment) -> None:
        self.launches = segment.launches
        self.buckets = segment.key.buckets
        low, _ = token_range(phase)
        first = [low, *(bucket + 1 for bucket in self.buckets)]
        self.runners = [
            SegmentRunner(phase.name, schedule, number, segment.launches, bucket, max(shortest, -(-bucket // 2)))
            for bucket, shortest in zip(self.buckets, first, strict=False)
        ]

    def runner(self, tokens: int) -> SegmentRunner | None:
        """That of the smallest bucket that holds `tokens`; None if there is none or it would be over half empty."""
        number = bisect_left(self.buckets, tokens)
        if number == len(self.buckets) or self.buckets[number] > 2 * tokens:
            return None
        return self.runners[number]


class Router:
    """Runs schedules on the device, one step at a time."""

    def __init__(self, plan: Plan, backend: Backend, worker: CaptureWorker) -> None:
        self._backend, self._worker = backend, worker
        self._busy = threading.Lock()
        self._closed = False
        self.outside_buckets = 0
        self.routes = {
            (phase.name, schedule.name): tuple(_routes(phase, schedule))
            for phase in plan.phases
            for schedule in phase.schedules
        }

    def close(self) -> None:
        """Wait for the step in progress and let no other begin."""
        with self._busy:
            self._closed = True

    @contextmanager
    def step(self) -> Generator[list[SegmentRunner]]:
        """The time between the first launch of a step and the token read back. Yields the list of runners whose graphs
        the step uses: they are not evicted meanwhile. The driver's refusals become RunErrors."""
        with self._busy:
            if self._closed:
                raise SessionClosed()
            used: list[SegmentRunner] = []
            try:
                yield used
            except BackendRefused as refused:
                self._drain()
                raise RunError(f"the device refused to run the step: {refused}") from refused
            except BaseException:
                self._drain()
                raise
            finally:
                self._worker.put_back(used)

    def _drain(self) -> None:
        """Wait for what was launched and will not be read back, before its graphs count as free."""
        with suppress(Exception):  # the step has failed already, with the error that matters
            self._backend.snapshot([MemoryRef("parameters", 0)], 0, 1)

    def run(
        self,
        phase: str,
        schedule: str,
        tokens: int,
        start: int,
        process: LogitsProcessor | None,
        stop: Stop,
        used: list[SegmentRunner],
    ) -> bool:
        """Run every segment of a schedule for `tokens` rows behind `start` cached ones. False if `stop` said so."""
        for route in self.routes[phase, schedule]:
            if stop():
                return False
            if isinstance(route, DynamicRunner):
                done = self._run_dynamic(route, tokens, process, stop)
            else:
                done = self._run_static(phase, route, tokens, start, stop, used)
            if not done:
                return False
        return True

    def _run_static(
        self, phase: str, route: StaticRoute, tokens: int, start: int, stop: Stop, used: list[SegmentRunner]
    ) -> bool:
        runner = route.runner(tokens)
        graph = None if runner is None else self._worker.take(runner)
        if runner is not None and graph is not None:
            used.append(runner)
            self._backend.replay(graph, tokens)
            return True
        if not self._backend.run(phase, route.launches, tokens, stop):
            return False
        if runner is None:
            self.outside_buckets += 1
        else:
            self._worker.ran_plainly(runner, start)
        return True

    def _run_dynamic(self, runner: DynamicRunner, tokens: int, process: LogitsProcessor | None, stop: Stop) -> bool:
        for host, launches in runner.pieces:
            if host:
                self._call_host(runner, launches, process)
            elif not self._backend.run(runner.phase, launches, tokens, stop):
                return False
        runner.runs += 1
        return True

    def _call_host(self, runner: DynamicRunner, launches: Sequence[int], process: LogitsProcessor | None) -> None:
        if process is None:
            where = f"{runner.phase}/{runner.schedule}"
            raise RunError(f"expected a logits processor, which {where} calls, found none; pass process=")
        for launch in launches:
            self._backend.call_host(runner.phase, launch, process)


def token_range(phase: Phase) -> tuple[int, int]:
    """The fewest and the most tokens that the phase takes in one call."""
    for size in phase.sizes:
        if size.name == "tokens":
            return max(1, size.low), size.high
    return 1, 1


def _routes(phase: Phase, schedule: Schedule) -> Iterator[StaticRoute | DynamicRunner]:
    for number, segment in enumerate(schedule.segments):
        if isinstance(segment, StaticSegment):
            yield StaticRoute(phase, schedule.name, number, segment)
        else:
            yield DynamicRunner(phase.name, schedule.name, number, _pieces(phase, segment), segment.reasons)


def _pieces(phase: Phase, segment: DynamicSegment) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    groups = groupby(segment.launches, key=lambda number: on_host(phase.launches[number]))
    return tuple((host, tuple(launches)) for host, launches in groups)
