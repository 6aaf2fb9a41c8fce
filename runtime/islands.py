"""How do the islands of a plan run: sub-models in ONNX Runtime, on memory that launches share with them?

Sessions of ONNX Runtime are made when the plan is opened (`island_sessions.py`). Tensors that lie in buffers are handed
over where they lie, and written where they shall lie; what only the host holds (text, sequences, shapes that nobody
knew) goes from island to island as ONNX Runtime's own values.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import split_roles
from hjgc.plan_format.structs import Launch, Operand, Phase
from hjgc.runtime.backend import Value
from hjgc.runtime.island_sessions import (
    PROVIDER,
    Opened,
    Place,
    Provider,
    Sessions,
    in_users_words,
    named,
    onnxruntime_for,
)
from hjgc.runtime.ort_values import BFLOAT16, ort_value, to_host, wrapped

Stop = Callable[[], bool]

WATCH_SECONDS = 0.005
"""How often a running island is asked whether it shall stop."""
AWAKE_SECONDS = 1.0
"""How long that goes on after the last one: to wake the thread for each would cost more than many an island."""


class Values:
    """What only the host holds of a plan, by phase and number."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Value] = {}

    def get(self, phase: str, index: int) -> Value:
        """Raises KeyError where nothing was given or computed yet."""
        return self._held[phase, index]

    def put(self, phase: str, index: int, value: Value) -> None:
        self._held[phase, index] = value

    def place(self, phase: Phase, index: int) -> Place:
        """Where an island finds the value, or leaves it; None before it was given."""
        get, put = partial(self._held.get, (phase.name, index)), partial(self.put, phase.name, index)
        return Place(get, put, type=phase.values[index].type)

    def clear(self) -> None:
        self._held.clear()


@dataclass
class Counts:
    """What islands cost so far: the seconds are the host's, the bytes and seconds of copies those between a device and
    the host. `providers` counts the islands that each computes, `on_host` those that the host does, by reason."""

    islands: int
    providers: Counter[str] = field(default_factory=lambda: Counter[str]())
    on_host: Counter[str] = field(default_factory=lambda: Counter[str]())
    runs: int = 0
    run_seconds: float = 0.0
    to_host: int = 0
    to_device: int = 0
    copy_seconds: float = 0.0

    def as_data(self) -> dict[str, Any]:
        return {
            "islands": self.islands,
            "providers": dict(self.providers),
            "on_host": dict(self.on_host),
            "runs": self.runs,
            "run_seconds": round(self.run_seconds, 6),
            "bytes_to_host": self.to_host,
            "bytes_to_device": self.to_device,
            "copy_seconds": round(self.copy_seconds, 6),
        }


class Islands:
    """The islands of one plan, ready to run. `close` it. Raises PlanError where ONNX Runtime is missing, or does not
    take a sub-model.

    `provider` is tried for those in `movable`, whose operands all lie in memory; the CPU takes the rest. It may be the
    reason why there is none. Islands that compute the same have one session."""

    def __init__(self, file: PlanFile, provider: Provider | str | None = None, movable: Collection[int] = ()) -> None:
        self.ort = onnxruntime_for(file)
        self.table, self._provider = file.plan.islands, provider
        self.counts = self.running = Counts(len(self.table))
        """`running`: what a run adds to; not what is reported while `uncounted`."""
        sessions = Sessions(self.ort, file, provider, movable)
        self._data = sessions.data
        self._opened: list[Opened] = []
        for number in range(len(self.table)):
            opened, why = sessions.open(number)
            self._opened.append(opened)
            self.counts.providers[self._on_device.name if opened.on_device else PROVIDER] += 1
            self.counts.on_host.update([why] if why else [])
        self._watch = _Watch()

    def opened(self, number: int) -> Opened:
        return self._opened[number]

    def data(self, number: int) -> bytes:
        """The sub-model of an island on the device."""
        return self._data[self.table[number].sha256]

    def bind(self, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> Callable[[Stop | None], bool]:
        """A call that runs the island on these operands. It returns False if `stop` said so before the end. Raises
        RunError that names the island's nodes if it fails."""
        # What ONNX Runtime allocates for a binding serves its next run too: no place for what somebody may keep.
        if any(place.memory is None and place.address is None for place in (*inputs, *outputs)):
            return lambda stop: self._run(number, self._fed(number, inputs), outputs, stop)
        ready = self.bound(number, self._opened[number].session, inputs, outputs)
        return lambda stop: self._run_bound(number, ready, stop)

    def _fed(self, number: int, inputs: Sequence[Place]) -> dict[str, Value]:
        """The inputs by name; what is absent, an optional that was not given, is left out."""
        fed: dict[str, Value] = {}
        for name, place in zip(self.table[number].inputs, inputs, strict=True):
            value = self.wrap(place) if place.get is None else place.get()
            if value is not None:
                fed[name] = wrapped(self.ort, value) if isinstance(value, np.ndarray) else value
        return fed

    def wrap(self, place: Place) -> Value:
        """ONNX Runtime's view of a buffer."""
        memory = place.memory
        assert memory is not None, "a buffer"
        return ort_value(self.ort, memory, BFLOAT16 if place.dtype == "bfloat16" else None)

    def bound(self, number: int, session: Any, inputs: Sequence[Place], outputs: Sequence[Place]) -> Any:
        """Inputs and outputs where they lie: nothing is copied."""
        island, binding = self.table[number], session.io_binding()
        for name, place in zip(island.inputs, inputs, strict=True):
            if place.address is None:
                binding.bind_ortvalue_input(name, self.wrap(place))
            else:
                self._on_device.bind(binding, "input", name, place)
        for name, place in zip(island.outputs, outputs, strict=True):
            if place.address is None:
                binding.bind_ortvalue_output(name, self.wrap(place))
            else:
                self._on_device.bind(binding, "output", name, place)
        return binding

    @property
    def _on_device(self) -> Provider:
        assert self._provider is not None and not isinstance(self._provider, str), "addresses are of a device"
        return self._provider

    def _run_bound(self, number: int, binding: Any, stop: Stop | None) -> bool:
        session = self._opened[number].session
        return self._guarded(number, stop, lambda options: session.run_with_iobinding(binding, options))

    def _run(self, number: int, fed: dict[str, Value], outputs: Sequence[Place], stop: Stop | None) -> bool:
        session, names = self._opened[number].session, list(self.table[number].outputs)
        found: list[Value] = []

        def run(options: Any) -> None:
            tensors = all(isinstance(value, self.ort.OrtValue) for value in fed.values())
            if tensors and all(place.is_tensor for place in outputs):
                found.extend(session.run_with_ort_values(names, fed, options))
            else:
                found.extend(session.run(names, {name: self.unwrap(value) for name, value in fed.items()}, options))

        if not self._guarded(number, stop, run):
            return False
        for place, value in zip(outputs, found, strict=True):
            self._deliver(number, place, value)
        return True

    def _deliver(self, number: int, place: Place, value: Value) -> None:
        if place.put is not None:
            place.put(value)
            return
        memory = place.memory
        assert memory is not None, "a buffer"
        array = np.asarray(self.unwrap(value))
        if array.shape != memory.shape or array.dtype.itemsize != memory.dtype.itemsize:
            problem = f"expected {memory.dtype} {list(memory.shape)}, found {array.dtype} {list(array.shape)}"
            raise RunError(f"{self._named(number)} gave another shape than the plan says: {problem}")
        memory[...] = array.view(memory.dtype) if array.dtype != memory.dtype else array

    def unwrap(self, value: Value) -> Value:
        """An array, or a list of them."""
        return to_host(value) if isinstance(value, self.ort.OrtValue) else value

    def _guarded(self, number: int, stop: Stop | None, run: Callable[[Any], None]) -> bool:
        """Whether it ran to its end. While it runs, `stop` is asked from another thread."""
        options = self.ort.RunOptions()
        options.log_severity_level = 4  # what it has to say comes back as an error
        begun = time.perf_counter()
        try:
            if stop is None:
                run(options)
            else:
                with self._watch.over(options, stop):
                    run(options)
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
            if stop is not None and stop():
                return False
            words = " ".join(in_users_words(str(error), self.table[number]).split())[:400]
            raise RunError(f"{self._named(number)} failed in ONNX Runtime: {words}") from error
        self.running.runs += 1
        self.running.run_seconds += time.perf_counter() - begun
        return True

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """The block runs islands for nobody."""
        self.running = Counts(len(self.table))
        try:
            yield
        finally:
            self.running = self.counts

    def _named(self, number: int) -> str:
        return named(self.table[number])

    def close(self) -> None:
        self._watch.close()
        self._opened.clear()


class IslandRun:
    """One launch of an island with its operands bound."""

    def __init__(self, islands: Islands, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> None:
        self.run = islands.bind(number, inputs, outputs)


class _Watch:
    """A thread that asks, while an island runs, whether it shall stop, and then tells ONNX Runtime so. It looks now and
    then for as long as islands run at all, so that a run need not wake it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: tuple[Any, Stop] | None = None
        self._thread: threading.Thread | None = None
        self._asleep = self._closed = False
        self._last = 0.0

    def over(self, options: Any, stop: Stop) -> _Watch:
        with self._changed:
            self._running = (options, stop)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="hjgc island watch", daemon=True)
                self._thread.start()
            if self._asleep:
                self._changed.notify()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running = None
            self._last = time.monotonic()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                running = self._running
                if running is not None and running[1]():
                    running[0].terminate = True
                self._asleep = running is None and time.monotonic() - self._last > AWAKE_SECONDS
                self._changed.wait(None if self._asleep else WATCH_SECONDS)

    def close(self) -> None:
        with self._changed:
            self._closed, thread = True, self._thread
            self._changed.notify()
        if thread is not None:
            thread.join()


def island_launches(phase: Phase) -> frozenset[int]:
    """The launches that ONNX Runtime computes."""
    return frozenset(number for number, launch in enumerate(phase.launches) if all_ops()[launch.op].island)


def ends(launch: Launch) -> tuple[list[Operand | None], list[Operand | None]]:
    """What a launch of a tensor op reads and writes, in order; None for what is left out."""
    given = {operand.role: operand for operand in launch.operands}
    reads, writes = split_roles(tuple(given))
    return [given.get(f"x{i}") for i in range(reads)], [given.get(f"y{i}") for i in range(writes)]
