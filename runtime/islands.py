"""How do the islands of a plan run: sub-models in ONNX Runtime, on memory that launches share with them?

A session of ONNX Runtime is made for each island when the plan is opened. Tensors that lie in buffers are handed over
where they lie, and written where they shall lie; what only the host holds (text, sequences, shapes that nobody knew)
goes from island to island as ONNX Runtime's own values.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError, RunError
from hjgc.plan_format.structs import Island

Value = Any
"""An array, a list of values, None, or ONNX Runtime's own OrtValue."""
Stop = Callable[[], bool]

WATCH_SECONDS = 0.005
"""How often a running island is asked whether it shall stop."""
BFLOAT16 = 16
"""ONNX's number for it: numpy has no such type, its bits travel as uint16."""
NUMPY_KINDS = frozenset((*range(1, 14), 14, 15))
"""ONNX's numbers of the types that numpy has, text among them."""
BITS = {
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4",
    22: "int4", 23: "float4_e2m1fn", 24: "float8_e8m0fnu",
}  # fmt: skip
"""Types that numpy has not, by the name that `ml_dtypes` gives them."""
HALF_BYTES = (21, 22, 23)
NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Place:
    """Where an operand of an island lies: in `memory` of an element type, or with the host as a value of a type."""

    get: Callable[[], Value] | None = None
    put: Callable[[Value], None] | None = None
    memory: NDArray[Any] | None = None
    dtype: str = ""
    type: str = ""

    @property
    def is_tensor(self) -> bool:
        return self.memory is not None or self.type.startswith("tensor(")


class Islands:
    """The islands of one plan, ready to run on the CPU. `close` it. Raises PlanError where ONNX Runtime is missing, or
    does not take a sub-model."""

    def __init__(self, file: PlanFile) -> None:
        if find_spec("onnxruntime") is None:
            problem = f"expected onnxruntime for the plan's {len(file.plan.islands)} islands, found it not installed"
            raise PlanError(file.path, problem, field="$.islands", next_step="try pip install 'hjgc[ort]'")
        self.ort: Any = importlib.import_module("onnxruntime")
        self.table = file.plan.islands
        section = file.section("islands")
        self._sessions = [_session(self.ort, file, i, section) for i in range(len(self.table))]
        self._watch = _Watch()

    def bind(self, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> Callable[[Stop | None], bool]:
        """A call that runs the island on these operands. It returns False if `stop` said so before the end. Raises
        RunError that names the island's nodes if it fails."""
        if any(place.get is not None for place in inputs) or not all(place.is_tensor for place in outputs):
            return lambda stop: self._run(number, self._fed(number, inputs), outputs, stop)
        ready = self._bound(number, inputs, outputs)
        return lambda stop: self._run_bound(number, ready, outputs, stop)

    def _fed(self, number: int, inputs: Sequence[Place]) -> dict[str, Value]:
        """The inputs by name; what is absent, an optional that was not given, is left out."""
        fed: dict[str, Value] = {}
        for name, place in zip(self.table[number].inputs, inputs, strict=True):
            value = self.wrap(place) if place.get is None else place.get()
            if value is not None:
                fed[name] = self._wrapped(value) if isinstance(value, np.ndarray) else value
        return fed

    def wrap(self, place: Place) -> Value:
        """ONNX Runtime's view of a buffer."""
        memory = place.memory
        assert memory is not None, "a buffer"
        return ort_value(self.ort, memory, BFLOAT16 if place.dtype == "bfloat16" else None)

    def _wrapped(self, array: NDArray[Any]) -> Value:
        """An array of the host as ONNX Runtime's own value."""
        kind = next((kind for kind, name in BITS.items() if name == str(array.dtype)), None)
        if kind is None:
            return ort_value(self.ort, array) if array.dtype.kind not in "OU" else array
        if kind not in HALF_BYTES:
            return ort_value(self.ort, array.view(np.uint16 if kind == BFLOAT16 else np.uint8), kind)
        value = self.ort.OrtValue.ortvalue_from_shape_and_type(array.shape, kind)
        packed = packed_halves(array)
        if packed.size:
            ctypes.memmove(value.data_ptr(), packed.ctypes.data, packed.size)
        return value

    def _bound(self, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> Any:
        """Inputs and outputs where they lie: nothing is copied."""
        island, binding = self.table[number], self._sessions[number].io_binding()
        for name, place in zip(island.inputs, inputs, strict=True):
            binding.bind_ortvalue_input(name, self.wrap(place))
        for name, place in zip(island.outputs, outputs, strict=True):
            if place.put is None:
                binding.bind_ortvalue_output(name, self.wrap(place))
            else:
                binding.bind_output(name, "cpu")
        return binding

    def _run_bound(self, number: int, binding: Any, outputs: Sequence[Place], stop: Stop | None) -> bool:
        session = self._sessions[number]
        if not self._guarded(number, stop, lambda options: session.run_with_iobinding(binding, options)):
            return False
        if any(place.put is not None for place in outputs):
            for place, value in zip(outputs, binding.get_outputs(), strict=True):
                if place.put is not None:
                    place.put(value)
        return True

    def _run(self, number: int, fed: dict[str, Value], outputs: Sequence[Place], stop: Stop | None) -> bool:
        session, names = self._sessions[number], list(self.table[number].outputs)
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
        try:
            if stop is None:
                run(options)
            else:
                with self._watch.over(options, stop):
                    run(options)
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
            if stop is not None and stop():
                return False
            words = " ".join(str(error).split())[:400]
            raise RunError(f"{self._named(number)} failed in ONNX Runtime: {words}") from error
        return True

    def _named(self, number: int) -> str:
        return named(self.table[number])

    def close(self) -> None:
        self._watch.close()
        self._sessions.clear()


class IslandRun:
    """One launch of an island with its operands bound."""

    def __init__(self, islands: Islands, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> None:
        self.run = islands.bind(number, inputs, outputs)


class _Watch:
    """A thread that asks, while an island runs, whether it shall stop, and then tells ONNX Runtime so."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: tuple[Any, Stop] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def over(self, options: Any, stop: Stop) -> _Watch:
        with self._changed:
            self._running = (options, stop)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="hjgc island watch", daemon=True)
                self._thread.start()
            self._changed.notify()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running = None

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                running = self._running
                if running is not None and running[1]():
                    running[0].terminate = True
                self._changed.wait(None if running is None else WATCH_SECONDS)

    def close(self) -> None:
        with self._changed:
            self._closed, thread = True, self._thread
            self._changed.notify()
        if thread is not None:
            thread.join()


def named(island: Island) -> str:
    """The island and the first of its nodes."""
    nodes = ", ".join(island.nodes[:5]) + (f" and {len(island.nodes) - 5} more" if len(island.nodes) > 5 else "")
    return f"{island.name} (ONNX nodes {nodes})"


def _session(ort: Any, file: PlanFile, number: int, section: bytes) -> Any:
    island = file.plan.islands[number]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    data = section[island.offset : island.offset + island.length]
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
        words = " ".join(str(error).split())[:400]
        problem = f"expected a sub-model that ONNX Runtime takes, found {named(island)}: {words}"
        step = "compile the model again with the onnxruntime of this machine"
        raise PlanError(file.path, problem, field=f"$.islands[{number}]", next_step=step) from None


def ort_value(ort: Any, array: NDArray[Any], kind: int | None = None) -> Any:
    """The array as ONNX Runtime's own value, which shares its memory; `kind` is ONNX's number of a type that numpy has
    not."""
    if kind is not None:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def host_value(value: Value) -> Value:
    """What the caller gets for a value of the host's: arrays for tensors."""
    if value is None or isinstance(value, list | np.ndarray | dict):
        return value
    return to_host(value) if value.has_value() else None


def packed_halves(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Two elements a byte, the first in the low half."""
    flat = array.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8)


def to_host(value: Any) -> NDArray[Any]:
    """A tensor of ONNX Runtime's as an array of the host; of a type that numpy has not, its bytes, as the elements of
    `ml_dtypes` where that is installed."""
    if value.element_type() in NUMPY_KINDS:
        return value.numpy()
    size = value.tensor_size_in_bytes()
    raw = np.frombuffer((ctypes.c_uint8 * size).from_address(value.data_ptr()), np.uint8).copy() if size else NOTHING
    return from_bits(raw, value.element_type(), tuple(value.shape()))


def from_bits(raw: NDArray[np.uint8], kind: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Elements of an ONNX type that numpy has not, from their bytes."""
    name = BITS.get(kind)
    if name is None:
        raise RunError(f"expected elements that an array can hold, found ONNX type {kind}")
    if find_spec("ml_dtypes") is None:
        return raw if kind in HALF_BYTES else raw.view(np.uint16 if kind == BFLOAT16 else np.uint8).reshape(shape)
    dtype = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    if kind not in HALF_BYTES:
        return raw.view(dtype).reshape(shape)
    halves = np.stack((raw & 15, raw >> 4), axis=1).reshape(-1)[: int(np.prod(shape))]
    signed = np.where(halves > 7, halves.astype(np.int8) - 16, halves) if name == "int4" else halves
    return (halves.view(dtype) if name.startswith("float") else signed.astype(dtype)).reshape(shape)
