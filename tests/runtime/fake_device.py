"""A device for tests: real small memory, made-up arithmetic, a log, and hooks to make it fail.

Each launch fills what it writes with bytes that depend on its name and on all it reads, so whatever goes wrong shows in
the tokens, or in a function's results; islands compute like any other launch. `sample` picks the largest logit and
steps history and parameter block as the op says.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Launch, Operand, Plan
from hjgc.runtime.backend import BackendRefused, Callback, Ids, MemoryRef, Rows, Value, digest_of, sizes_of, spell_rows

Bytes = NDArray[np.uint8]
BYTES_PER_LAUNCH = 100
CACHES = ("full_cache", "ring_cache")


@dataclass(eq=False)
class FakeGraph:
    phase: str
    launches: tuple[int, ...]
    bucket: Rows
    bytes: int
    released: bool = False


class FakeDevice:
    """A backend for the `cpu` target. The log holds one entry a call: the launch's name when it runs by itself, else
    `build GRAPH`, `replay GRAPH`, `release GRAPH`, `host LAUNCH`; `decode[14]` is a graph of 14 launches."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.log: list[str] = []
        self.build_started = threading.Event()
        self.build_may_finish = threading.Event()
        self.build_may_finish.set()
        self.refuse: Callable[[str], str | None] = lambda graph: None
        self.build_error: Exception | None = None
        self.crash_worker: Exception | None = None
        self.replay_error: Exception | None = None
        self.corrupt: set[str] = set()
        self.corrupt_when: Callable[[FakeGraph, Any], bool] = lambda graph, tokens: True
        self.hollow: set[str] = set()
        self.real_bytes: Callable[[FakeGraph], int] = lambda graph: BYTES_PER_LAUNCH * len(graph.launches)
        self.before_launch: Callable[[str], None] = lambda name: None
        self.before_replay: Callable[[str], None] = lambda name: None
        self.before_read: Callable[[], None] = lambda: None
        self.runnable: Callable[[str, int], int] = lambda phase, rows: rows
        self.graphs: list[FakeGraph] = []
        self.closed = False
        self.asynchronous = True
        self.thread_pools = False
        self.digests_on = "host"
        self._states = [np.zeros(state.bytes, np.uint8) for state in plan.states]
        self._parameters = np.zeros(plan.parameters.bytes, np.uint8)
        self._arena = np.zeros(plan.arena_bytes, np.uint8)
        self._fields = {field.name: field for field in plan.parameters.fields}

    @property
    def name(self) -> str:
        return "cpu"

    @property
    def living(self) -> list[FakeGraph]:
        return [graph for graph in self.graphs if not graph.released]

    def most_rows(self, phase: str, rows: int) -> int:
        return self.runnable(phase, rows)

    def write_parameters(self, values: Mapping[str, int | float], prompt: Ids | None = None) -> None:
        if prompt is not None:
            self.write_history(0, prompt)
        for name, value in values.items():
            field = self._fields[name]
            word = np.array([value], np.dtype(field.dtype).newbyteorder("<"))
            self._parameters[field.offset : field.offset + 4] = word.view(np.uint8)

    def write_history(self, offset: int, ids: Ids) -> None:
        self._state("token_history").view("<i4")[offset : offset + len(ids)] = ids

    def write_arguments(self, phase: str, rows: Rows, values: Sequence[Value]) -> None:
        self.log.append("arguments")
        for port, value in zip(self.plan.phase(phase).arguments, values, strict=True):
            self._view(MemoryRef("buffer", port.index, phase), 0, rows)[:] = value.reshape(-1).view(np.uint8)

    def read_results(self, phase: str, rows: Rows) -> list[Value]:
        self.before_read()
        ports = self.plan.phase(phase).results
        return [self._view(MemoryRef("buffer", port.index, phase), 0, rows).copy() for port in ports]

    def end_call(self) -> None: ...

    def run(
        self,
        phase: str,
        launches: Sequence[int],
        tokens: Rows,
        stop: Callable[[], bool] | None = None,
        ahead: int | None = None,
    ) -> bool:
        del ahead
        for number in launches:
            if stop is not None and stop():
                return False
            launch = self.plan.phase(phase).launches[number]
            self.log.append(launch.name)
            self.before_launch(launch.name)
            self._compute(phase, launch, tokens)
        return True

    def call_host(self, phase: str, launch: int, tokens: int, function: Callback) -> None:
        called = self.plan.phase(phase).launches[launch]
        self.log.append(f"host {called.name}")
        if called.op == "host_function":
            refs = [MemoryRef(operand.space, operand.index, phase) for operand in called.operands]
            x, y = (self._view(ref, 0, tokens).view("<f4").reshape(tokens, -1) for ref in refs)
            rows = x.copy()
            changed = function(rows)
            y[:] = rows if changed is None else changed
            return
        end = self._parameter("start") + self._parameter("length")
        row = self._state("logits").view("<f4")
        changed = function(self._state("token_history").view("<i4")[:end].copy(), row)
        if changed is not None:
            row[:] = changed

    def build(
        self, phase: str, launches: Sequence[int], bucket: Rows, pause: Callable[[], None] | None = None
    ) -> FakeGraph:
        del pause
        graph = FakeGraph(phase, tuple(launches), bucket, 0)
        self.log.append(f"build {spell(graph)}")
        self.build_started.set()
        assert self.build_may_finish.wait(60)
        words = self.refuse(spell(graph))
        if words is not None:
            raise BackendRefused(words)
        if self.build_error is not None:
            raise self.build_error
        graph.bytes = self.real_bytes(graph)
        self.graphs.append(graph)
        return graph

    def graph_bytes(self, launches: int) -> int:
        if self.crash_worker is not None:
            raise self.crash_worker
        return BYTES_PER_LAUNCH * launches

    def replay(self, graph: Any, tokens: Rows) -> None:
        assert not graph.released
        assert graph.bucket == tokens if isinstance(tokens, tuple) else graph.bucket // 2 <= tokens <= graph.bucket
        self.log.append(f"replay {spell(graph)}")
        self.before_replay(spell(graph))
        if self.replay_error is not None:
            raise self.replay_error
        faulty = self.corrupt_when(graph, tokens)
        for number in graph.launches:
            launch = self.plan.phase(graph.phase).launches[number]
            if launch.name in self.hollow:
                continue
            self._compute(graph.phase, launch, tokens)
            if faulty and launch.name in self.corrupt:
                self._spoil(graph.phase, launch, tokens)

    def release(self, graph: Any) -> None:
        assert not graph.released
        self.log.append(f"release {spell(graph)}")
        graph.released = True

    def snapshot(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, Bytes]:
        return {ref: self._view(ref, start, tokens).copy() for ref in refs}

    def digest(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, int]:
        return {ref: digest_of(data) for ref, data in self.snapshot(refs, start, tokens).items()}

    def restore(self, saved: Mapping[MemoryRef, Bytes], start: int, tokens: Rows) -> None:
        for ref, contents in saved.items():
            self._view(ref, start, tokens)[...] = contents

    def fill(self, refs: Sequence[MemoryRef], start: int, tokens: Rows, value: int) -> None:
        for ref in refs:
            self._view(ref, start, tokens)[...] = value

    def send_token(self) -> int:
        return int(self._state("sampled").view("<i4")[0])

    def read_token(self, ticket: Any) -> int:
        self.before_read()
        return ticket

    def read_logits(self) -> NDArray[np.float32]:
        return self._state("logits").view("<f4").astype(np.float32)

    def graphless(self, phase: str, launch: int, *, padded: bool) -> str:
        del phase, launch, padded
        return "the host computes it"

    def islands(self) -> None:
        return None

    def uncounted(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self.closed = True

    def memory(self) -> dict[str, int]:
        lasting = sum(part.nbytes for part in (*self._states, self._parameters))
        graphs = sum(graph.bytes for graph in self.living)
        return {"lasting": lasting, "arena": self._arena.nbytes, "graphs": graphs, "staging": 0}

    def contents(self) -> bytes:
        """All that outlives a request."""
        kept = [i for i, state in enumerate(self.plan.states) if state.kind not in CACHES]
        return b"".join(part.tobytes() for part in (*(self._states[i] for i in kept), self._parameters))

    def kind(self, kind: str) -> int:
        """The number of the state of this kind."""
        return next(i for i, state in enumerate(self.plan.states) if state.kind == kind)

    def arena_bytes_of(self, ref: MemoryRef) -> range:
        """The bytes of the arena that a buffer takes."""
        buffer = self.plan.phase(ref.phase).buffers[ref.index]
        return range(buffer.offset, buffer.offset + buffer.bytes)

    def _state(self, kind: str) -> Bytes:
        return self._states[self.kind(kind)]

    def _parameter(self, name: str) -> int:
        field = self._fields[name]
        return int(self._parameters[field.offset : field.offset + 4].view("<i4")[0])

    def _view(self, ref: MemoryRef, start: int, tokens: Rows) -> Bytes:
        if ref.space == "parameters":
            return self._parameters
        if ref.space == "buffer":
            phase = self.plan.phase(ref.phase)
            buffer, sizes = phase.buffers[ref.index], sizes_of(phase, tokens)
            size = math.prod(evaluate(axis, sizes) for axis in buffer.shape) * ITEM_BYTES[buffer.dtype]
            return self._arena[buffer.offset : buffer.offset + size]
        state = self.plan.states[ref.index]
        if state.kind not in CACHES:
            return self._states[ref.index]
        assert isinstance(tokens, int)
        heads, rows, size = state.shape
        shaped = self._states[ref.index].reshape(heads, rows, size * ITEM_BYTES[state.dtype])
        return shaped[:, start : start + tokens]

    def _compute(self, phase: str, launch: Launch, tokens: Rows) -> None:
        start = 0
        if isinstance(tokens, int):
            start = self._parameter("start")
            assert self._parameter("length") == tokens
        if launch.op == "sample":
            assert isinstance(tokens, int)
            self._sample(start + tokens)
            return
        seed = zlib.crc32(launch.name.encode())
        for operand in launch.operands:
            if operand.access != "write":
                seed = zlib.crc32(self._read(phase, operand, start, tokens), seed)
        for operand in launch.operands:
            if operand.access != "read":
                self._fill(
                    phase, operand, start, tokens, np.random.default_rng([seed, zlib.crc32(operand.role.encode())])
                )

    def _read(self, phase: str, operand: Operand, start: int, tokens: Rows) -> bytes:
        """What a launch sees: of the caches the rows it may attend to, of the history this call's tokens."""
        if operand.space in ("weight", "constant"):
            return b""
        if operand.space == "state" and self.plan.states[operand.index].kind == "token_history":
            assert isinstance(tokens, int)
            return self._state("token_history").view("<i4")[start : start + tokens].tobytes()
        ref = MemoryRef(operand.space, operand.index, phase)
        if operand.space == "state" and self.plan.states[operand.index].kind in CACHES:
            assert isinstance(tokens, int)
            rows = start if operand.access == "read_write" else start + tokens
            return self._view(ref, 0, rows).tobytes()
        return self._view(ref, start, tokens).tobytes()

    def _fill(self, phase: str, operand: Operand, start: int, tokens: Rows, generator: np.random.Generator) -> None:
        view = self._view(MemoryRef(operand.space, operand.index, phase), start, tokens)
        if operand.space == "state" and self.plan.states[operand.index].kind == "logits":
            view.view("<f4")[:] = generator.standard_normal(view.size // 4)
        else:
            view[...] = generator.integers(0, 256, view.shape, np.uint8)

    def _sample(self, end: int) -> None:
        token = int(self._state("logits").view("<f4").argmax())
        self._state("sampled").view("<i4")[0] = token
        self._state("token_history").view("<i4")[end] = token
        self.write_parameters({"start": end, "length": 1})

    def _spoil(self, phase: str, launch: Launch, tokens: Rows) -> None:
        """Flip a byte of what the launch wrote."""
        start = 0
        if isinstance(tokens, int):
            start = self._parameter("start") - (tokens if launch.op == "sample" else 0)
        written = next(operand for operand in launch.operands if operand.access != "read")
        view = self._view(MemoryRef(written.space, written.index, phase), start, tokens)
        place = (0,) * (view.ndim - 1) + (-1,)
        view[place] ^= 0xFF


def spell(graph: FakeGraph) -> str:
    """`decode[14]`, and `prefill@8[14]` where there are buckets; `call@2x3[2]` for sizes of a function."""
    bucket = "" if graph.bucket == 1 else f"@{spell_rows(graph.bucket)}"
    return f"{graph.phase}{bucket}[{len(graph.launches)}]"
