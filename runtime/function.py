"""What serves a plan that is a function: named arrays in, named arrays out?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.sizes import Size, evaluate, spell
from hjgc.plan_format.structs import DynamicSegment, Plan, Port, Segment
from hjgc.runtime.arguments import argument, shape_text
from hjgc.runtime.backend import Rows
from hjgc.runtime.errors import DeadlineExceeded, SessionClosed
from hjgc.runtime.islands import Value, dtype_of_bits, host_value

PHASE = "call"


class FunctionBackend(Protocol):
    """What a function needs of a device besides `hjgc.runtime.backend.Backend`: buffers as arrays, values by number."""

    @property
    def name(self) -> str: ...

    def run(self, phase: str, launches: Any, tokens: Rows, stop: Callable[[], bool] | None = None) -> bool: ...

    def tensor(self, phase: str, index: int, tokens: Rows) -> NDArray[Any]: ...

    def value(self, phase: str, index: int) -> Value: ...

    def give_value(self, phase: str, index: int, value: Value) -> None: ...

    def memory(self) -> dict[str, int]: ...

    def close(self) -> None: ...


class Function:
    """Runs a plan that is a function. `function(inputs)` takes arrays by name and returns arrays by name.

    Threads. Every method may be called from any thread; calls have the device one at a time. `close()` waits for the
    call in progress."""

    def __init__(self, plan: Plan, backend: FunctionBackend) -> None:
        self.plan, self._backend = plan, backend
        self._phase = plan.phase(PHASE)
        self._segments: tuple[Segment, ...] = self._phase.schedule().segments
        self._busy = threading.Lock()
        self._closed = False
        self._cancelled = threading.Event()
        self.calls = 0
        self._runs = [0] * len(self._segments)
        self._seconds = [0.0] * len(self._segments)

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

        `inputs` are arrays, or what numpy makes arrays of; `deadline` is in seconds from now. Raises RunError for
        inputs that do not fit the plan, naming the first, and for an island that fails; DeadlineExceeded. The function
        may be called again after any of them."""
        given = self._checked(inputs)
        end = None if deadline is None else time.monotonic() + deadline
        with self._busy:
            if self._closed:
                raise SessionClosed()
            self._cancelled.clear()
            rows = self._bind(given)
            self._fill(given, rows)
            self._run(rows, end)
            self.calls += 1
            return {port.name: self._result(port, rows) for port in self._phase.results}

    def cancel(self) -> None:
        """End the call in progress, between two launches or inside of an island; it raises RunError."""
        self._cancelled.set()

    def _run(self, rows: Rows, end: float | None) -> None:
        def stop() -> bool:
            return self._cancelled.is_set() or (end is not None and time.monotonic() >= end)

        for number, segment in enumerate(self._segments):
            begun = time.perf_counter()
            if not self._backend.run(PHASE, segment.launches, rows, stop):
                where = self._where(segment)
                if self._cancelled.is_set():
                    raise RunError(f"the call was cancelled {where}")
                raise DeadlineExceeded(f"the deadline passed {where}")
            self._runs[number] += 1
            self._seconds[number] += time.perf_counter() - begun

    def _where(self, segment: Segment) -> str:
        """Where a call was, in words; for an island, its nodes."""
        if isinstance(segment, DynamicSegment):
            chains = "; ".join(" <- ".join(reason.chain) for reason in segment.reasons[:3])
            return f"in a dynamic segment ({chains})"
        return "in a static segment"

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Value]:
        """Arrays of the right types, by name. Raises RunError that names the first that is not."""
        known = {port.name: port for port in self._phase.arguments}
        unknown = next((name for name in inputs if name not in known), None)
        if unknown is not None:
            names = ", ".join(map(repr, known)) or "none"
            raise RunError(f"expected inputs among {names}, found {unknown!r}")
        return {name: argument(port, inputs.get(name)) for name, port in known.items()}

    def _bind(self, given: Mapping[str, Value]) -> tuple[int, ...]:
        """The sizes that these inputs have, in the phase's order. Raises RunError where they disagree."""
        found: dict[str, int] = {}
        ports = [port for port in self._phase.arguments if port.space == "buffer"]
        for port in ports:
            shape = np.shape(given[port.name])
            if len(shape) != len(port.shape or ()):
                wanted = shape_text(port.shape)
                raise RunError(f"input {port.name!r}: expected {wanted}, found {list(shape)}")
            for axis, size in zip(port.shape or (), shape, strict=True):
                if isinstance(axis, Size):
                    found.setdefault(axis.name, size)
        self._check_ranges(found)
        for port in ports:
            self._check_shape(port, np.shape(given[port.name]), found)
        return tuple(found.get(size.name, size.low) for size in self._phase.sizes)

    def _check_ranges(self, found: Mapping[str, int]) -> None:
        for size in self._phase.sizes:
            value = found.get(size.name, size.low)
            if not size.low <= value <= size.high:
                raise RunError(
                    f"expected {size.name} of {size.low} to {size.high}, found {value}; compile again with "
                    f"--size {size.name}={min(size.low, value)}:{max(size.high, value)}"
                )

    def _check_shape(self, port: Port, shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
        for axis, size in zip(port.shape or (), shape, strict=True):
            try:
                wanted = size if axis is None else evaluate(axis, sizes)
            except KeyError:
                continue  # a size that no input has by itself
            if wanted != size:
                named = "" if isinstance(axis, int) or axis is None else f" ({spell(axis)} = {wanted})"
                problem = f"expected {shape_text(port.shape)}{named}, found {list(shape)}"
                raise RunError(f"input {port.name!r}: {problem}")

    def _fill(self, given: Mapping[str, Value], rows: Rows) -> None:
        for port in self._phase.arguments:
            value = given[port.name]
            if port.space == "value":
                self._backend.give_value(PHASE, port.index, value)
            else:
                memory = self._backend.tensor(PHASE, port.index, rows)
                memory[...] = _bits(value)

    def _result(self, port: Port, rows: Rows) -> Value:
        if port.space == "value":
            return host_value(self._backend.value(PHASE, port.index))
        memory = self._backend.tensor(PHASE, port.index, rows).copy()
        return _typed(memory, port.type)

    def report(self) -> dict[str, Any]:
        """Each segment with its runs, seconds and reasons; the memory. JSON-able."""
        segments = [
            {
                "kind": "dynamic" if isinstance(segment, DynamicSegment) else "static",
                "launches": len(segment.launches),
                "runs": self._runs[i],
                "seconds": round(self._seconds[i], 6),
                "reasons": [
                    {"code": str(reason.code), "sentence": reason.code.sentence, "chain": list(reason.chain)}
                    for reason in (segment.reasons if isinstance(segment, DynamicSegment) else ())
                ],
            }
            for i, segment in enumerate(self._segments)
        ]
        return {
            "model": self.plan.model.name,
            "target": self._backend.name,
            "calls": self.calls,
            "islands": len(self.plan.islands),
            "segments": segments,
            "memory": self._backend.memory(),
        }

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Give all memory back. May be called twice."""
        with self._busy:
            if not self._closed:
                self._closed = True
                self._backend.close()

    def __enter__(self) -> Function:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Of a type that numpy has not, the bits."""
    return array.view(np.uint16) if str(array.dtype) == "bfloat16" else array


def _typed(array: NDArray[Any], text: str) -> NDArray[Any]:
    dtype = dtype_of_bits("bfloat16") if text == "tensor(bfloat16)" else None
    return array if dtype is None else array.view(dtype)
