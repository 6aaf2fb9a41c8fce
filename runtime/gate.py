"""Does a new graph compute the same bytes as the plain run, and if not, which launch is the first to differ?

Both are given the same made-up input on the real memory: token ids, parameters, and whatever context the caches hold;
of a function the arguments of the call that asked for the graph, and what earlier segments made of them. What they
should write is filled with a pattern first, so that a graph that writes nothing is found out. Compared are digests,
which the device computes where it can: half a megabyte of cache rows a token (7B) is much to carry to the host while a
request may come. Only what differs is run again and looked at byte by byte. What was touched is put back, however the
check ends, except the cache rows of the call, since every request begins with an empty cache, and what a function's
launches write, since nothing of it lasts. The caller holds the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.hazards import MemoryUse, memory_uses
from hjgc.plan_format.structs import Launch, Phase, Plan
from hjgc.runtime.backend import Backend, BackendRefused, FunctionBackend, Graph, MemoryRef, Rows
from hjgc.runtime.functions import callback_of
from hjgc.runtime.runner import SegmentRunner
from hjgc.runtime.samples import Sample

POISON = 0xA5
AHEAD = 16
"""Launches that the host may be ahead: what a request that comes in a plain run has to wait for, two layers or so."""
NO_TOKEN = -1
SAMPLING: dict[str, int | float] = {
    "temperature": 0.75,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.125,
    "seed_low": 20261121,
    "seed_high": 7,
}
"""Every part of the sampler at work, in numbers that float32 holds well enough to be the same everywhere."""

CACHES = ("full_cache", "ring_cache")
Uses = list[list[MemoryUse]]
Contents = dict[MemoryRef, NDArray[np.uint8]]


class Interrupted(Exception):
    """A request wants the device: the check gave up and put everything back."""


class Gate:
    """Checks graphs on one device."""

    def __init__(self, plan: Plan, backend: Backend) -> None:
        self._plan, self._backend = plan, backend
        self._left: dict[SegmentRunner, list[tuple[Rows, int]]] = {}
        self._uses: dict[str, Uses] = {}

    def check(self, runner: SegmentRunner, graph: Graph, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The next trial of the runner's graph: None if it was passed, else a report. The graph may serve once none is
        `left`. Asks `stop` between launches and between copies. Raises Interrupted: the trial is still left then."""
        if runner not in self._left:
            self._left[runner] = self._places(runner)
        tokens, start = self._left[runner][0]
        uses = self._uses_of(runner.phase)
        with self._backend.uncounted():
            report = _Trial(self._plan, self._backend, runner, uses, (tokens, start), stop).run(graph)
        del self._left[runner][0]
        return report

    def left(self, runner: SegmentRunner) -> int:
        """How many trials the graph that is being checked still has to pass."""
        return len(self._left.get(runner, ()))

    def forget(self, runner: SegmentRunner) -> None:
        """The graph is judged: one that is built later begins anew."""
        self._left.pop(runner, None)

    def _uses_of(self, name: str) -> Uses:
        """What each launch of a phase reads and writes: always the same, and looking it up takes milliseconds."""
        if name not in self._uses:
            phase = self._plan.phase(name)
            self._uses[name] = [memory_uses(phase, launch) for launch in phase.launches]
        return self._uses[name]

    def _places(self, runner: SegmentRunner) -> list[tuple[Rows, int]]:
        """(tokens, start) to compare at: two starts, so that one that got fixed in the graph shows, and the longest and
        the shortest length it would serve. Where it starts, traffic has left real rows behind in the caches. A graph of
        a function serves one tuple of sizes."""
        bucket, shortest = runner.bucket, runner.shortest
        if not isinstance(bucket, int) or not isinstance(shortest, int):
            return [(bucket, 0)]
        behind = runner.last_start or shortest
        if runner.phase == "prefill":
            wanted = [(bucket, 0), (shortest, behind)]
        else:
            wanted = [(bucket, behind), (shortest, behind // 2)]
        context, latest = self._plan.model.context, _latest_start(self._plan.phase(runner.phase))
        lengths = [(min(tokens, context), start) for tokens, start in wanted]
        return list(dict.fromkeys((tokens, min(start, context - tokens, latest)) for tokens, start in lengths))


class _Trial:
    """One comparison, at one place: so many tokens from one start."""

    def __init__(
        self,
        plan: Plan,
        backend: Backend,
        runner: SegmentRunner,
        uses: Uses,
        place: tuple[Rows, int],
        stop: Callable[[], bool],
    ) -> None:
        self.plan, self.backend, self.runner, self.uses, self.stop = plan, backend, runner, uses, stop
        self.tokens, self.start = place
        self.phase = plan.phase(runner.phase)
        self.before, self.after = _around(self.phase, runner)
        self.saved: Contents = {}
        self.inputs: Contents = {}
        """Of a function: what the segment reads that is not its own."""

    def run(self, graph: Graph) -> dict[str, Any] | None:
        launches = self.runner.launches
        self.saved = self.backend.snapshot(self._memory(), self.start, self.tokens)
        try:
            differing = self._differing(graph, launches)
            return None if not differing else self._report(differing)
        finally:
            self.backend.restore(self.saved, self.start, self.tokens)

    def _differing(self, graph: Graph, launches: Sequence[int]) -> dict[MemoryRef, str]:
        """What the graph of `launches` leaves different from a plain run of them, and how."""
        watched = self._watched(launches)
        self._run_plainly(launches)
        expected = self._digest(watched)
        self._replay(graph, launches)
        found = self._digest(watched)
        changed = [ref for ref in watched if expected[ref] != found[ref]]
        return self._explained(changed, graph, launches) if changed else {}

    def _explained(self, changed: Sequence[MemoryRef], graph: Graph, launches: Sequence[int]) -> dict[MemoryRef, str]:
        """Which bytes differ where the digests did: both run once more."""
        self._run_plainly(launches)
        expected = self._snapshot(changed)
        self._replay(graph, launches)
        found = self._snapshot(changed)
        return {
            ref: _where(expected[ref], found[ref]) or "other bytes in one run, the same in the next" for ref in changed
        }

    def _run_plainly(self, launches: Sequence[int]) -> None:
        self._prepare(launches)
        self._run(launches)

    def _replay(self, graph: Graph, launches: Sequence[int]) -> None:
        self._prepare(launches)
        self.backend.replay(graph, self.tokens)

    def _digest(self, refs: Sequence[MemoryRef]) -> dict[MemoryRef, int]:
        self._give_way()
        return self.backend.digest(refs, self.start, self.tokens)

    def _prepare(self, launches: Sequence[int]) -> None:
        """The input, what earlier segments leave behind, and the pattern where `launches` will write."""
        self._give_way()
        self.backend.restore(self.saved, self.start, self.tokens)
        if isinstance(self.tokens, int):
            self._make_up(self.start + self.tokens)
            self._run_before()
        elif not self.inputs:
            self._call_again(self.runner.sample)
        else:
            self.backend.restore(self.inputs, 0, self.tokens)
        self.backend.fill(self._overwritten(launches), self.start, self.tokens, POISON)

    def _make_up(self, end: int) -> None:
        """Ids and parameters of a request that has `end` tokens."""
        self.backend.write_parameters({**SAMPLING, "start": self.start, "length": end - self.start})
        generator = np.random.default_rng(end)
        ids: list[int] = generator.integers(0, self.plan.model.vocab_size, end).tolist()
        self.backend.write_history(0, [*ids, NO_TOKEN])

    def _call_again(self, sample: Sample | None) -> None:
        """The call up to the segment, once: what lies before may take long."""
        assert sample is not None, "a graph of a function is asked for with the arguments of a call"
        backend = cast(FunctionBackend, self.backend)
        backend.write_arguments(self.phase.name, self.tokens, sample.values)
        try:
            self._run_before()
        finally:
            backend.end_call()
        self.inputs = self._snapshot(self._needed(self.runner.launches))

    def _run_before(self) -> None:
        """What earlier segments leave behind. The caller's functions are not called: rows pass unchanged."""
        for host, launches in groupby(self.before, key=lambda number: on_host(self.phase.launches[number])):
            if not host:
                self._run(list(launches))
                continue
            assert isinstance(self.tokens, int), "a function calls none of the caller's"
            for number in launches:
                self.backend.call_host(self.phase.name, number, self.tokens, _unchanged)

    def _run(self, launches: Sequence[int]) -> None:
        if launches and not self.backend.run(self.runner.phase, launches, self.tokens, self.stop, AHEAD):
            raise Interrupted
        self._give_way()

    def _give_way(self) -> None:
        if self.stop():
            raise Interrupted

    def _snapshot(self, refs: Sequence[MemoryRef]) -> Contents:
        """One by one: a long prompt's cache rows are hundreds of megabytes over all layers, and a request may come."""
        contents: Contents = {}
        for ref in refs:
            self._give_way()
            contents.update(self.backend.snapshot([ref], self.start, self.tokens))
        return contents

    def _memory(self) -> list[MemoryRef]:
        """What is saved and put back: the parameter block, the history, and other lasting memory that the check writes,
        except cache rows. Between the calls of a function nothing lasts."""
        if self.runner.is_exact:
            return []
        history = [MemoryRef("state", i) for i, state in enumerate(self.plan.states) if state.kind == "token_history"]
        written = self._written([*self.before, *self.runner.launches])
        lasting = [ref for ref in written if ref.space != "buffer" and not self._is_cache(ref.space, ref.index)]
        return list(dict.fromkeys([MemoryRef("parameters", 0), *history, *lasting]))

    def _written(self, launches: Sequence[int]) -> list[MemoryRef]:
        refs: dict[MemoryRef, None] = {}
        for number in launches:
            refs.update(dict.fromkeys(self._writes(number)))
        return list(refs)

    def _writes(self, number: int) -> list[MemoryRef]:
        return [self._ref(use.space, use.index) for use in self.uses[number] if use.writes]

    def _reads(self, launches: Sequence[int]) -> set[MemoryRef]:
        uses = [use for number in launches for use in self.uses[number]]
        return {self._ref(use.space, use.index) for use in uses if use.reads}

    def _ref(self, space: str, index: int) -> MemoryRef:
        return MemoryRef(space, index, self.phase.name if space == "buffer" else "")

    def _watched(self, launches: Sequence[int]) -> list[MemoryRef]:
        """What is compared after `launches`: lasting memory, what later segments or the caller read, what the last
        launch wrote. Other buffers may have been used again since."""
        kept = {ref for ref in self._reads(self.after) if ref.space == "buffer"}
        kept.update(
            self._ref("buffer", _owner(self.phase, port.index)) for port in self.phase.results if port.space == "buffer"
        )
        kept.update(self._writes(launches[-1]))
        return [ref for ref in self._written(launches) if ref.space != "buffer" or ref in kept]

    def _overwritten(self, launches: Sequence[int]) -> list[MemoryRef]:
        """What `launches` write without needing what was there: caches (the rows of this call), and memory whose first
        use is a write, unless it shares bytes with a buffer that comes from an earlier segment."""
        first = self._first_uses(launches)
        inputs = [ref.index for ref, needed in first.items() if needed and ref.space == "buffer"]
        written = set(self._written(launches))
        return [ref for ref, needed in first.items() if not needed and ref in written and not self._shares(ref, inputs)]

    def _needed(self, launches: Sequence[int]) -> list[MemoryRef]:
        """What `launches` read that was there before."""
        return [ref for ref, needed in self._first_uses(launches).items() if needed]

    def _first_uses(self, launches: Sequence[int]) -> dict[MemoryRef, bool]:
        """All that `launches` touch: does the first of them need what was there?"""
        first: dict[MemoryRef, bool] = {}
        for number in launches:
            for use in self.uses[number]:
                needed = use.reads and not self._is_cache(use.space, use.index)
                first.setdefault(self._ref(use.space, use.index), needed)
        return first

    def _is_cache(self, space: str, index: int) -> bool:
        return space == "state" and self.plan.states[index].kind in CACHES

    def _shares(self, ref: MemoryRef, buffers: Sequence[int]) -> bool:
        if ref.space != "buffer":
            return False
        mine = self.phase.buffers[ref.index]
        others = (self.phase.buffers[index] for index in buffers)
        return any(mine.offset < b.offset + b.bytes and b.offset < mine.offset + mine.bytes for b in others)

    def _report(self, differing: dict[MemoryRef, str]) -> dict[str, Any]:
        """The first launch that differs, found by halving: graphs of the first few launches, each checked as a whole.
        They are small and short-lived, and stand beside the budget, not in it."""
        launches = self.runner.launches
        agree, differ = 0, len(launches)
        try:
            if not self._rebuilt(launches):
                return self._sentence(None, differing, "a second graph of the same launches did not")
            while differ - agree > 1:
                middle = (agree + differ) // 2
                found = self._rebuilt(launches[:middle])
                agree, differ, differing = (agree, middle, found) if found else (middle, differ, differing)
        except BackendRefused as refused:
            return self._sentence(None, differing, f"looking for the launch, the device refused: {refused}")
        return self._sentence(launches[differ - 1], differing, "")

    def _rebuilt(self, launches: Sequence[int]) -> dict[MemoryRef, str]:
        """What a new graph of these launches leaves different."""
        self._give_way()
        graph = self.backend.build(self.runner.phase, launches, self.runner.bucket)
        try:
            return self._differing(graph, launches)
        finally:
            self.backend.release(graph)

    def _sentence(self, launch: int | None, differing: dict[MemoryRef, str], remark: str) -> dict[str, Any]:
        memory = {self._name(ref): how for ref, how in differing.items()}
        named = None if launch is None else self.phase.launches[launch]
        who = "the graph" if named is None else f"in the graph, launch {launch} {named.name!r} ({named.op})"
        changed = "; ".join(f"{name}: {how}" for name, how in memory.items())
        why = f"{who} wrote other bytes than the plain run: {changed}" + (f"; {remark}" if remark else "")
        return {
            "why": why,
            "launch": launch,
            "name": None if named is None else named.name,
            "op": None if named is None else named.op,
            "memory": memory,
            "tokens": self.tokens if isinstance(self.tokens, int) else list(self.tokens),
            "start": self.start,
        }

    def _name(self, ref: MemoryRef) -> str:
        if ref.space == "buffer":
            return self.phase.buffers[ref.index].name
        return "parameters" if ref.space == "parameters" else self.plan.states[ref.index].name


def _owner(phase: Phase, index: int) -> int:
    """The buffer that this one is a view of, or itself."""
    base = phase.buffers[index].view_of
    return index if base is None else base


def _latest_start(phase: Phase) -> int:
    """The most tokens that may be cached before a call of the phase."""
    return next((size.high for size in phase.sizes if size.name == "start"), 0)


def _around(phase: Phase, runner: SegmentRunner) -> tuple[list[int], list[int]]:
    """The launches of the schedule before the runner's segments, without those of the host that only change what is
    there, and after it."""
    schedule = phase.schedule(runner.schedule)
    before = [n for segment in schedule.segments[: runner.segment] for n in segment.launches]
    after = [n for segment in schedule.segments[runner.last_segment + 1 :] for n in segment.launches]
    return [n for n in before if not on_host(phase.launches[n]) or _makes_something(phase.launches[n])], after


def _makes_something(launch: Launch) -> bool:
    return any(operand.access == "write" for operand in launch.operands)


def _unchanged(*operands: object) -> None:
    """Stands for a function of the caller's."""
    del operands


def on_host(launch: Launch) -> bool:
    """Is the launch a call of the host's?"""
    return callback_of(launch) is not None


def _where(expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> str:
    if expected.size != found.size:
        return f"{expected.size} bytes expected, {found.size} found"
    places = np.flatnonzero(expected.reshape(-1) != found.reshape(-1))
    return "" if not len(places) else f"{len(places)} of {expected.size} bytes, the first at {places[0]}"
