"""How do the islands of a plan run: sub-models in ONNX Runtime, on memory that launches share with them?

A session of ONNX Runtime is made for each island when the plan is opened. Tensors that lie in buffers are handed over
where they lie, and written where they shall lie; what only the host holds (text, sequences, shapes that nobody knew)
goes from island to island as ONNX Runtime's own values.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.checker import brief
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError, RunError
from hjgc.plan_format.ops.declaration import split_roles
from hjgc.plan_format.structs import Island, Launch, Operand, Phase
from hjgc.runtime.backend import Value
from hjgc.runtime.onnx_bytes import check_data_inside

Stop = Callable[[], bool]

WATCH_SECONDS = 0.005
"""How often a running island is asked whether it shall stop."""
PROVIDER = "CPUExecutionProvider"
BFLOAT16 = 16
"""ONNX's number for it: numpy has no such type, its bits travel as uint16."""
NUMPY_KINDS = frozenset((*range(1, 14), 14, 15))
"""ONNX's numbers of the types that numpy has, text among them."""
BITS = {
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4",
    22: "int4", 23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip
"""Types that numpy has not, by the name that `ml_dtypes` gives them."""
PACKED = {21: 2, 22: 2, 23: 2, 25: 4, 26: 4}
"""How many elements lie in a byte, the first in its lowest bits."""
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
    """What islands cost so far: the seconds and bytes of copies are those between a device and the host."""

    islands: int
    runs: int = 0
    run_seconds: float = 0.0
    to_host: int = 0
    to_device: int = 0
    copy_seconds: float = 0.0

    def as_data(self) -> dict[str, Any]:
        return {
            "islands": self.islands,
            "provider": PROVIDER,
            "runs": self.runs,
            "run_seconds": round(self.run_seconds, 6),
            "bytes_to_host": self.to_host,
            "bytes_to_device": self.to_device,
            "copy_seconds": round(self.copy_seconds, 6),
        }


class Islands:
    """The islands of one plan, ready to run on the CPU. `close` it. Raises PlanError where ONNX Runtime is missing, or
    does not take a sub-model."""

    def __init__(self, file: PlanFile) -> None:
        if find_spec("onnxruntime") is None:
            problem = f"expected onnxruntime for the plan's {len(file.plan.islands)} islands, found it not installed"
            raise PlanError(file.path, problem, field="$.islands", next_step="try pip install 'hjgc[ort]'")
        self.ort: Any = importlib.import_module("onnxruntime")
        self.table = file.plan.islands
        self.counts = self.running = Counts(len(self.table))
        """`running`: what a run adds to; not what is reported while `uncounted`."""
        section = file.section("islands")
        self._sessions = [_session(self.ort, file, i, section) for i in range(len(self.table))]
        self._watch = _Watch()

    def bind(self, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> Callable[[Stop | None], bool]:
        """A call that runs the island on these operands. It returns False if `stop` said so before the end. Raises
        RunError that names the island's nodes if it fails."""
        # What ONNX Runtime allocates for a binding serves its next run too: no place for what somebody may keep.
        if any(place.memory is None for place in (*inputs, *outputs)):
            return lambda stop: self._run(number, self._fed(number, inputs), outputs, stop)
        ready = self._bound(number, inputs, outputs)
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

    def _bound(self, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> Any:
        """Inputs and outputs where they lie: nothing is copied."""
        island, binding = self.table[number], self._sessions[number].io_binding()
        for name, place in zip(island.inputs, inputs, strict=True):
            binding.bind_ortvalue_input(name, self.wrap(place))
        for name, place in zip(island.outputs, outputs, strict=True):
            binding.bind_ortvalue_output(name, self.wrap(place))
        return binding

    def _run_bound(self, number: int, binding: Any, stop: Stop | None) -> bool:
        session = self._sessions[number]
        return self._guarded(number, stop, lambda options: session.run_with_iobinding(binding, options))

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
            words = " ".join(str(error).split())[:400]
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


def ends(launch: Launch) -> tuple[list[Operand | None], list[Operand | None]]:
    """What a launch of a tensor op reads and writes, in order; None for what is left out."""
    given = {operand.role: operand for operand in launch.operands}
    reads, writes = split_roles(tuple(given))
    return [given.get(f"x{i}") for i in range(reads)], [given.get(f"y{i}") for i in range(writes)]


def named(island: Island) -> str:
    """The island and the first of its nodes."""
    nodes = ", ".join(island.nodes[:5]) + (f" and {len(island.nodes) - 5} more" if len(island.nodes) > 5 else "")
    return f"{island.name} (ONNX nodes {nodes})"


def _session(ort: Any, file: PlanFile, number: int, section: bytes) -> Any:
    island = file.plan.islands[number]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Else bytes that begin like ONNX Runtime's own format are read as that, whatever they mean as ONNX.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    data = section[island.offset : island.offset + island.length]
    if hashlib.sha256(data).hexdigest() != island.sha256:
        problem = f"expected the sha256 that the plan names for {named(island)}, found another"
        raise PlanError(file.path, problem, field=f"$.islands[{number}].sha256", next_step="compile the model again")
    try:
        check_data_inside(data)
    except ValueError as error:
        problem = f"{error}, in {named(island)}"
        raise PlanError(file.path, problem, field=f"$.islands[{number}]", next_step="compile the model again") from None
    try:
        session = ort.InferenceSession(data, options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
        words = " ".join(str(error).split())[:400]
        problem = f"expected a sub-model that ONNX Runtime takes, found {named(island)}: {words}"
        step = "compile the model again with the onnxruntime of this machine"
        raise PlanError(file.path, problem, field=f"$.islands[{number}]", next_step=step) from None
    for end, wanted, values in (
        ("inputs", island.inputs, session.get_inputs()),
        ("outputs", island.outputs, session.get_outputs()),
    ):
        found = tuple(value.name for value in values)
        if found != wanted:
            problem = f"expected the sub-model's {end} {brief(found)}, found {brief(wanted)}"
            raise PlanError(file.path, problem, field=f"$.islands[{number}].{end}", next_step="compile the model again")
    shared = sorted(set(island.inputs) & set(island.outputs))
    if shared:  # ONNX Runtime would hand the input on, and leave the memory bound for the output as it is
        problem = f"expected outputs of other names than inputs, found {brief(shared[0])} as both, in {named(island)}"
        raise PlanError(file.path, problem, field=f"$.islands[{number}].outputs", next_step="compile the model again")
    return session


def ort_value(ort: Any, array: NDArray[Any], kind: int | None = None) -> Any:
    """The array as ONNX Runtime's own value, which shares its memory; `kind` is ONNX's number of a type that numpy has
    not."""
    if kind is not None:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def wrapped(ort: Any, array: NDArray[Any]) -> Value:
    """An array of the host as ONNX Runtime's own value; text stays an array."""
    kind = next((kind for kind, name in BITS.items() if name == str(array.dtype)), None)
    if kind is None:
        return ort_value(ort, array) if array.dtype.kind not in "OU" else array
    if kind not in PACKED:
        return ort_value(ort, array.view(np.uint16 if kind == BFLOAT16 else np.uint8), kind)
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, kind)
    raw = packed(array, PACKED[kind])
    if raw.size:
        ctypes.memmove(value.data_ptr(), raw.ctypes.data, raw.size)
    return value


def host_value(value: Value) -> Value:
    """What the caller gets for a value of the host's: arrays for tensors."""
    if value is None or isinstance(value, list | np.ndarray | dict):
        return value
    return to_host(value) if value.has_value() else None


def packed(array: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """The bytes that hold `count` elements each."""
    bits = 8 // count
    flat = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    whole = np.append(flat, np.zeros(-flat.size % count, np.uint8)).reshape(-1, count)
    return np.bitwise_or.reduce(whole << _shifts(count), axis=1, dtype=np.uint8)


def _shifts(count: int) -> NDArray[np.uint8]:
    return np.arange(0, 8, 8 // count, dtype=np.uint8)


@cache
def dtype_of_bits(name: str) -> np.dtype[Any] | None:
    """A type that numpy has not, if `ml_dtypes` is installed."""
    return None if find_spec("ml_dtypes") is None else np.dtype(getattr(importlib.import_module("ml_dtypes"), name))


def in_bits(array: NDArray[Any]) -> NDArray[Any]:
    """An array as a buffer holds it: of a type that numpy has not, the bits."""
    dtype = dtype_of_bits("bfloat16")
    return array.view(np.uint16) if dtype is not None and array.dtype == dtype else array


def out_of_bits(array: NDArray[Any], kind: str) -> NDArray[Any]:
    """What the caller gets for an array that was in a buffer; `kind` is its type as ONNX spells it."""
    dtype = dtype_of_bits("bfloat16") if kind == "tensor(bfloat16)" else None
    return array if dtype is None else array.view(dtype)


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
    dtype = dtype_of_bits(name)
    if dtype is None:
        return raw if kind in PACKED else raw.view(np.uint16 if kind == BFLOAT16 else np.uint8).reshape(shape)
    if kind not in PACKED:
        return raw.view(dtype).reshape(shape)
    count = PACKED[kind]
    top = 1 << (8 // count - 1)
    found = (raw[:, None] >> _shifts(count) & (2 * top - 1)).reshape(-1)[: math.prod(shape)]
    signed = (found ^ top).astype(np.int8) - top if name.startswith("int") else found
    return (found.view(dtype) if name.startswith("float") else signed.astype(dtype)).reshape(shape)
