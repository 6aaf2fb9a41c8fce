"""What did a session do when, as a timeline that Perfetto and chrome://tracing show?

A trace watches a session from outside: while it runs, it stands in front of a few methods of that session's own
objects, and is gone again when it ends. So a session that nobody watches pays nothing. Times of the host are those of
`time.perf_counter`; where the backend can mark its stream (CUDA), the device's own times stand beside them.

The format is the Trace Event Format's JSON object: complete events (`X`), instants (`i`) and names (`M`), times in
microseconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.files import write_atomically
from hjgc.plan_format.structs import DebugMap
from hjgc.runtime.backend import BackendRefused, Graph
from hjgc.runtime.errors import SessionClosed
from hjgc.runtime.runner import SegmentRunner, State, spell_segments

if TYPE_CHECKING:
    from hjgc.runtime.backend import Backend
    from hjgc.runtime.request import Request
    from hjgc.runtime.route import Router
    from hjgc.runtime.session import Session
    from hjgc.runtime.turns import Turns
    from hjgc.runtime.worker import CaptureWorker

HOST, DEVICE = 1, 2
MOST_EVENTS = 1_000_000
"""A trace that somebody forgot to end stays within a few hundred megabytes; what comes later is counted only."""
COLLECTED, AHEAD = 512, 16
"""After how many marks the device is asked for their times, and of how many not yet: a step ahead may have to pass
them first."""
JUDGED = (State.PROMOTED, State.QUARANTINED)

Arguments = Mapping[str, Any]

_starting = threading.Lock()
"""Held while a trace of any session takes its place, or leaves it."""


@dataclass(frozen=True)
class Watched:
    """A session and the parts of it that a trace watches."""

    session: Session
    backend: Backend
    turns: Turns
    router: Router
    worker: CaptureWorker


class Trace:
    """Begins with the `with` block, or `start`, and ends with it, or `stop`. From any thread; one trace of a session at
    a time. `save` writes what was seen, also while it goes on. Raises RunError."""

    def __init__(self, watched: Watched, debug: DebugMap | None = None) -> None:
        self._watched, self._session, self._plan = watched, watched.session, watched.session.plan
        self._backend: Any = watched.backend
        self._nodes = {} if debug is None else {entry.phase: entry.launches for entry in debug.phases}
        self._events: list[tuple[str, str, str, float, float, int, Arguments]] = []
        """Kind, category, name, begin and end in seconds, thread, arguments: made into JSON afterwards."""
        self._marks: list[tuple[str, Any, Any, Arguments]] = []
        self._on_the_device: list[dict[str, Any]] = []
        self._threads: list[str] = []
        self._here = threading.local()
        self._replays: dict[tuple[int, int], tuple[SegmentRunner, tuple[str, Arguments]]] = {}
        """What was said of a graph and so many rows: saying it anew would take longer than to launch it."""
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._began = 0.0
        self._base: Any = None
        self._before = 0.0
        """The mark that device times are counted from, and its own time in milliseconds."""
        self.dropped = 0

    def start(self) -> Trace:
        """Requests that began before have their segments on the timeline, but no tokens."""
        session = self._session
        with _starting:
            if session.closed:
                raise SessionClosed()
            if session.watcher is not None:
                raise RunError("expected a session that no trace watches, found one; stop that trace first")
            session.watcher = self
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    def _begin(self) -> None:
        backend, worker = self._backend, self._watched.worker
        if hasattr(backend, "mark"):
            self._base = backend.mark()
            backend.milliseconds(self._base, self._base)  # waits, so that both clocks begin together
        self._began = time.perf_counter()
        self._watch(self._session, "request", self._requests)
        self._watch(self._watched.turns, "take", self._timed("queue", lambda *_: ("wait for the device", {})))
        self._watch(backend, "run", self._on_device(self._plain))
        self._watch(backend, "replay", self._on_device(self._replay))
        self._watch(backend, "call_host", self._timed("host", self._function))
        self._watch(backend, "read_token", self._reading)
        self._watch(backend, "build", self._timed("capture", self._build))
        self._watch(worker, "_check", self._judge)
        self._watch(worker, "_release", self._timed("capture", self._gone))

    def stop(self) -> None:
        """May be called twice. A device that fails now keeps its times, and raises nothing."""
        with _starting:
            if self._session.watcher is not self:
                return
            self._session.watcher = None
            undo, self._undo = self._undo, []
            for give_back in undo:
                give_back()
        with self._lock:
            self._collect(len(self._marks))
            if self._base is not None:
                self._drop(self._base)
            self._base = None

    def __enter__(self) -> Trace:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def as_data(self) -> dict[str, Any]:
        """The trace as its JSON holds it, events by time."""
        with self._lock:
            self._collect(len(self._marks))
            on_device = list(self._on_the_device)
        seen = [self._event(*event) for event in list(self._events)]
        events = sorted([*seen, *on_device], key=lambda event: event["ts"])
        other = {"model": self._plan.model.name, "target": self._backend.name, "dropped": self.dropped}
        return {"traceEvents": [*self._names(), *events], "displayTimeUnit": "ms", "otherData": other}

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON, whole or not at all."""
        write_atomically(Path(path), json.dumps(self.as_data()).encode())

    # Standing in front of methods.

    def _watch(self, owner: Any, name: str, made: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """On this object alone; its class is left as it is."""
        setattr(owner, name, made(getattr(owner, name)))
        self._undo.append(lambda: delattr(owner, name))

    def _timed(
        self, category: str, words: Callable[..., tuple[str, Arguments]]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A complete event for each call; `words` makes its name and arguments of those of the call."""

        def made(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                began = time.perf_counter()
                try:
                    return method(*given, **named)
                finally:
                    name, arguments = words(*given, **named)
                    self._complete(category, name, began, arguments)

            return call

        return made

    def _on_device(
        self, words: Callable[..., tuple[str, Arguments]]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """The same for what the device does: the time to ask for it, and the time it took."""

        def made(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                name, arguments = words(*given, **named)
                before = self._mark()
                began = time.perf_counter()
                try:
                    return method(*given, **named)
                finally:
                    self._complete("segment", name, began, arguments)
                    if before is not None:
                        self._keep(name, before, self._mark(), arguments)

            return call

        return made

    def _reading(self, method: Callable[[Any], int]) -> Callable[[Any], int]:
        """The token has come: the device has passed all marks but those of a step ahead."""
        timed = self._timed("wait", lambda *_: ("wait for the token", {}))(method)

        def call(ticket: Any) -> int:
            token = timed(ticket)
            if len(self._marks) > COLLECTED:
                with self._lock:
                    self._collect(len(self._marks) - AHEAD)
            return token

        return call

    def _requests(self, method: Callable[..., Request]) -> Callable[..., Request]:
        def call(*given: Any, **named: Any) -> Request:
            request = method(*given, **named)
            prefill = self._timed("request", lambda ids, sampling: ("first token", {"prompt tokens": len(ids)}))
            decode = self._timed("request", lambda **last: ("token", {"cached tokens": request.position}))
            request.prefill = prefill(request.prefill)  # type: ignore[method-assign]
            request.decode = decode(request.decode)  # type: ignore[method-assign]
            return request

        return call

    def _judge(self, method: Callable[[SegmentRunner], None]) -> Callable[[SegmentRunner], None]:
        timed = self._timed("capture", lambda runner: (f"check {runner.name}", {"state": str(runner.state)}))(method)

        def call(runner: SegmentRunner) -> None:
            timed(runner)
            if runner.state in JUDGED:
                self._instant(f"{runner.state.lower()} {runner.name}", {"why": runner.why})

        return call

    # Words for what is done.

    def _plain(
        self, phase: str, launches: Sequence[int], tokens: int, stop: object = None, ahead: object = None
    ) -> tuple[str, Arguments]:
        return f"{phase}, launch by launch", self._about(phase, launches, tokens)

    def _replay(self, graph: Graph, tokens: int) -> tuple[str, Arguments]:
        known = self._replays.get((id(graph), tokens))
        if known is not None and known[0].graph is graph:
            return known[1]
        runner = next((runner for runner in self._watched.router.runners if runner.graph is graph), None)
        if runner is None:  # a graph of the gate's own
            return "replay", {"rows": tokens}
        about = self._about(runner.phase, runner.launches, tokens)
        segment = spell_segments(runner.segment, runner.last_segment)
        words = f"{runner.phase}, replay", {**about, "segment": segment, "graph for rows": runner.bucket}
        self._replays[id(graph), tokens] = runner, words
        return words

    def _function(self, phase: str, launch: int, tokens: int, function: object) -> tuple[str, Arguments]:
        return "the caller's function", self._about(phase, [launch], tokens)

    def _build(self, phase: str, launches: Sequence[int], bucket: int, pause: object = None) -> tuple[str, Arguments]:
        return f"build {phase} for {bucket} rows", {"launches": len(launches)}

    def _gone(self, runner: SegmentRunner, graph: object) -> tuple[str, Arguments]:
        return f"{'evict' if runner.state is State.EVICTED else 'release'} {runner.name}", {"bytes": runner.bytes}

    def _about(self, phase: str, launches: Sequence[int], tokens: int) -> dict[str, Any]:
        """The ends of what ran, by the plan's names and by the ONNX model's."""
        first, last = launches[0], launches[-1]
        named = self._plan.phase(phase).launches
        about = {"rows": tokens, "launches": len(launches), "from": named[first].name, "to": named[last].name}
        nodes = self._nodes.get(phase)
        if nodes is not None:
            ends = [nodes[first].nodes[:1], nodes[last].nodes[-1:]]
            about["ONNX nodes"] = " … ".join(node for end in ends for node in end)
        return about

    # Events.

    @property
    def _is_full(self) -> bool:
        return len(self._events) + len(self._marks) + len(self._on_the_device) >= MOST_EVENTS

    def _room(self) -> bool:
        self.dropped += self._is_full
        return not self._is_full

    @property
    def _runs(self) -> bool:
        return self._session.watcher is self

    def _complete(self, category: str, name: str, began: float, arguments: Arguments) -> None:
        if self._runs and self._room():
            self._events.append(("X", category, name, began, time.perf_counter(), self._thread(), arguments))

    def _instant(self, name: str, arguments: Arguments) -> None:
        if self._runs and self._room():
            now = time.perf_counter()
            self._events.append(("i", "capture", name, now, now, self._thread(), arguments))

    def _event(
        self, kind: str, category: str, name: str, began: float, ended: float, thread: int, arguments: Arguments
    ) -> dict[str, Any]:
        place = {"pid": HOST, "tid": thread, "ts": round((began - self._began) * 1e6, 3)}
        long = {"dur": round((ended - began) * 1e6, 3)} if kind == "X" else {"s": "t"}
        return {"name": name, "cat": category, "ph": kind, **place, **long, "args": dict(arguments)}

    def _thread(self) -> int:
        """Small numbers, in the order in which threads were met: the system's own come back for other threads."""
        if not hasattr(self._here, "number"):
            with self._lock:
                self._threads.append(threading.current_thread().name)
                self._here.number = len(self._threads)
        return self._here.number

    def _mark(self) -> Any:
        """A point in the stream; None where there are none, and where the device will not: a trace fails no step."""
        if self._base is None or not self._runs or self._is_full:
            return None
        try:
            return self._backend.mark()
        except BackendRefused:
            self.dropped += 1
            return None

    def _keep(self, name: str, before: Any, after: Any, arguments: Arguments) -> None:
        with self._lock:
            if after is not None and self._base is not None:
                self._marks.append((name, before, after, arguments))
                return
            self._drop(before, after)

    def _drop(self, *marks: Any) -> None:
        with suppress(BackendRefused):
            self._backend.drop_marks([mark for mark in marks if mark is not None])

    def _collect(self, count: int) -> None:
        """Ask the device for the times of the first so many marks, and give them back but for the last, from which time
        is counted on: what the device tells are single floats. Called under the lock."""
        marks, self._marks = self._marks[:count], self._marks[count:]
        for name, before, after, arguments in marks:
            try:
                since = self._backend.milliseconds(self._base, before)
                took = self._backend.milliseconds(before, after)
            except BackendRefused:
                self.dropped += 1
                self._drop(before, after)
                continue
            place = {"pid": DEVICE, "tid": 1, "ts": round((self._before + since) * 1e3, 3), "dur": round(took * 1e3, 3)}
            event = {"name": name, "cat": "device", "ph": "X", **place, "args": dict(arguments)}
            self._on_the_device.append(event)
            self._drop(self._base, before)
            self._base, self._before = after, self._before + since + took

    def _names(self) -> list[dict[str, Any]]:
        named = [("process_name", HOST, 0, f"host: {self._plan.model.name}")]
        named += [("thread_name", HOST, number, name) for number, name in enumerate(list(self._threads), 1)]
        if self._on_the_device:
            named += [("process_name", DEVICE, 0, "device"), ("thread_name", DEVICE, 1, "stream of the requests")]
        return [
            {"name": kind, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
            for kind, pid, tid, name in named
        ]
