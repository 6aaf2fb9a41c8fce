"""Which axes of a plan's kernels are fastest on this card: one variant at a time, measured in the whole step?

Kernels overlap their neighbours, so a variant is judged by the graph that it is part of. For each phase, and each range
of rows of a prompt, the variants of its launches are tried beside those that the plan has. A candidate is kept if the
step is clearly faster with it, and computes the same within what half precision explains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hjgc.compiler.build_variants import VariantKey, build_all, launch_abi
from hjgc.compiler.kernels.declaration import Axes
from hjgc.compiler.kernels.neighbours import neighbours
from hjgc.compiler.retune import variant_key, with_axes
from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import Plan, RowsCall, call_for
from hjgc.runtime.request import SAMPLING

Tell = Callable[[str], None]
REPEATS = 15
GAIN = 0.004
"""What a candidate must win of the step's time to be kept: less is noise."""
TOLERANCE = 0.02
"""Largest difference of the logits, relative to their size: other tiles add up in another order."""
CONTEXTS = (64, 160, 1024)
"""Cached tokens that a decode step is measured at."""


@dataclass(frozen=True)
class Place:
    """What is measured together: one step of a phase, for so many rows."""

    phase: str
    rows: int
    starts: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.phase} of {self.rows} rows" if self.rows > 1 else self.phase


@dataclass(frozen=True)
class Change:
    """A variant that gave way to another: what changed in its axes, and the step before and after, in milliseconds."""

    place: Place
    template: str
    axes: Mapping[str, tuple[Any, Any]]
    before: float
    after: float


@dataclass(frozen=True)
class Tuned:
    """The plan with the changes that were kept, the code of the variants that came with them, by number, and how many
    candidates were measured; `finished`: the search was not cut short."""

    plan: Plan
    added: Mapping[int, BuiltVariant]
    changes: tuple[Change, ...]
    measured: int
    finished: bool


class Stopwatch(Protocol):
    """Measures one step of a plan on a device: milliseconds of each replay, and the logits it leaves. Raises RunError
    for what the device refuses."""

    def measure(
        self, plan: Plan, added: Mapping[int, BuiltVariant], place: Place, repeats: int
    ) -> tuple[list[float], NDArray[np.float32]]: ...


class Tuner:
    """Searches place by place until the time is up."""

    def __init__(
        self,
        plan: Plan,
        target: str,
        stopwatch: Stopwatch,
        tell: Tell,
        *,
        build: Callable[[Sequence[VariantKey], Tell], Mapping[VariantKey, BuiltVariant]] = build_all,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._target, self._stopwatch, self._tell = plan, target, stopwatch, tell
        self._build, self._now = build, now
        self._added: dict[int, BuiltVariant] = {}
        self._changes: list[Change] = []
        self._measured = 0

    def run(self, places: Sequence[Place], seconds: float) -> Tuned:
        """The best plan found within about so many seconds."""
        self._end = self._now() + seconds
        finished = all(self._now() < self._end and self._tune(place) for place in places)
        return Tuned(self._plan, self._added, tuple(self._changes), self._measured, finished)

    def _tune(self, place: Place) -> bool:
        """Try every variant of the place. False if time ran out."""
        self._tell(f"tune {place}")
        numbers = self._numbers(place)
        tried = {number: self._candidates(number) for number in numbers}
        keys = [self._key(number, axes) for number, found in tried.items() for axes in found]
        built = self._build(list(dict.fromkeys(keys)), self._tell) if keys else {}
        best, reference = self._measure(self._plan, self._added, place)
        for number, candidates in tried.items():
            for axes in candidates:
                if self._now() >= self._end:
                    return False
                code = built.get(self._key(number, axes))
                if code is not None:
                    best, number = self._try(place, number, axes, code, best, reference)
        return True

    def _try(
        self, place: Place, number: int, axes: Axes, code: BuiltVariant, best: float, reference: NDArray[np.float32]
    ) -> tuple[float, int]:
        """The step's time and the number of the variant that serves it now: the candidate's if it was better."""
        plan = with_axes(self._plan, number, axes)
        added = {**self._added, len(plan.variants) - 1: code}
        try:
            found, logits = self._measure(plan, added, place)
        except RunError:  # it takes more shared memory or registers than this chip has
            return best, number
        self._measured += 1
        if found > best * (1 - GAIN) or not _close(logits, reference):
            return best, number
        again, _ = self._measure(self._plan, self._added, place)  # the card may have changed its pace since
        found, _ = self._measure(plan, added, place)
        if found > again * (1 - GAIN):
            return min(best, again), number
        before = self._plan.variants[number]
        changed = {name: (before.axes[name], value) for name, value in axes.items() if before.axes[name] != value}
        name = self._plan.templates[before.template].name
        self._changes.append(Change(place, name, changed, again, found))
        self._plan, self._added = plan, added
        return found, len(plan.variants) - 1

    def _measure(
        self, plan: Plan, added: Mapping[int, BuiltVariant], place: Place
    ) -> tuple[float, NDArray[np.float32]]:
        times, logits = self._stopwatch.measure(plan, added, place, REPEATS)
        return median(times), logits

    def _numbers(self, place: Place) -> list[int]:
        """The variants of the place's launches, those that take most launches first."""
        used = variants_of(self._plan, place.phase, place.rows, self._target)
        return sorted(dict.fromkeys(used), key=lambda number: (-used.count(number), number))

    def _candidates(self, number: int) -> list[dict[str, Any]]:
        variant = self._plan.variants[number]
        name = self._plan.templates[variant.template].name
        found = neighbours(name, variant.axes)
        return [axes for axes in found if launch_abi(name, axes) == variant.parameters]

    def _key(self, number: int, axes: Axes) -> VariantKey:
        name, target, _ = variant_key(self._plan, number)
        return name, target, tuple(sorted(axes.items()))


def places(plan: Plan, target: str) -> Iterator[Place]:
    """Decode first, since every token pays for it; then the ranges of a prompt that were built, the shortest first."""
    for phase in sorted(plan.phases, key=lambda phase: phase.name != "decode"):
        size = next((size for size in phase.sizes if size.name == "tokens"), None)
        if size is None:
            starts = tuple(start for start in CONTEXTS if start < plan.model.context)
            yield Place(phase.name, 1, starts or (0,))
            continue
        for rows in sorted(_ends(plan, phase.name, target) | {size.high}):
            if all(plan.variants[number].built for number in variants_of(plan, phase.name, rows, target)):
                yield Place(phase.name, rows, (0,))


def variants_of(plan: Plan, phase: str, rows: int, target: str) -> list[int]:
    """Of each launch the variant that serves so many rows."""
    calls = [call_for(launch.kernels[target], rows) for launch in plan.phase(phase).launches]
    return [call.variant for call in calls if call is not None]


def _ends(plan: Plan, phase: str, target: str) -> set[int]:
    """Where the ranges of rows end."""
    kernels = [launch.kernels[target] for launch in plan.phase(phase).launches]
    return {entry.high for kernel in kernels if isinstance(kernel, RowsCall) for entry in kernel.ranges}


def _close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """NaN is close to nothing."""
    return bool(np.linalg.norm(found - expected) <= TOLERANCE * np.linalg.norm(expected))


class CardStopwatch:
    """Measures on the card, over the memory of an open backend."""

    def __init__(self, backend: Any, plan: Plan) -> None:
        self._backend, self._timing = backend, backend.timing()
        rng = np.random.default_rng(0)
        self._ids: list[int] = rng.integers(0, plan.model.vocab_size, plan.model.context).tolist()

    def measure(
        self, plan: Plan, added: Mapping[int, BuiltVariant], place: Place, repeats: int
    ) -> tuple[list[float], NDArray[np.float32]]:
        segments = plan.phase(place.phase).schedule().segments
        launches = [number for segment in segments for number in segment.launches]
        self._backend.write_history(0, self._ids)
        with self._timing.graph(plan, place.phase, launches, place.rows, added) as graph:
            rounds = [self._timing.replay(graph, repeats, self._prepare(place, start)) for start in place.starts]
            return [sum(times) for times in zip(*rounds, strict=True)], self._backend.read_logits()

    def _prepare(self, place: Place, start: int) -> Callable[[], None]:
        def prepare() -> None:
            self._backend.write_parameters({**SAMPLING, "start": start, "length": place.rows})

        return prepare
