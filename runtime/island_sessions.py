"""How are sessions of ONNX Runtime made for the islands of a plan, and who computes which?

The CPU, unless a provider of the device's takes an island. What a plan brings is checked before ONNX Runtime sees it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from numpy.typing import NDArray

from hjgc.plan_format.checker import brief
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, Island, IslandCall, Plan
from hjgc.runtime.backend import Value
from hjgc.runtime.onnx_bytes import check_data_inside

PROVIDER = "CPUExecutionProvider"
ON_HOST = "it has values that only the host holds"


@dataclass(frozen=True)
class Place:
    """Where an operand of an island lies: in `memory` of an element type, at a device's `address` with a shape, or with
    the host as a value of a type."""

    get: Callable[[], Value] | None = None
    put: Callable[[Value], None] | None = None
    memory: NDArray[Any] | None = None
    dtype: str = ""
    type: str = ""
    address: int | None = None
    shape: tuple[int, ...] = ()

    @property
    def is_tensor(self) -> bool:
        return self.memory is not None or self.type.startswith("tensor(")


@dataclass(frozen=True)
class Opened:
    """A session of ONNX Runtime's. `inputs` and `outputs`: does it want them in the device's memory? `graphless`: why
    no graph can hold its run, if so; `padless`: why none that computes more rows than count can."""

    session: Any
    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    graphless: str = "it is computed on the host"
    padless: str = ""

    @property
    def on_device(self) -> bool:
        return any(self.inputs + self.outputs)


class Provider(Protocol):
    """One of ONNX Runtime's that computes on a device, with whose memory and stream it shares."""

    name: str

    def open(self, data: bytes, options: Any) -> Opened | str:
        """A session for the sub-model, or why it is to be run on the host."""
        ...

    def bind(self, binding: Any, end: str, name: str, place: Place) -> None:
        """Have the binding's `input` or `output` of that name lie at the place's address."""
        ...


class Sessions:
    """One for each sub-model that islands of the plan are, by `provider` for those in `movable` if it takes them. Those
    that draw random numbers have one each, and so each its own sequence. Raises PlanError."""

    def __init__(
        self, ort: Any, file: PlanFile, provider: Provider | str | None = None, movable: Collection[int] = ()
    ) -> None:
        self._ort, self._file, self._provider, self._movable = ort, file, provider, movable
        self._section, self._drawing = file.section("islands"), drawing(file.plan)
        self._made: dict[tuple[str, int, bool], Opened | str] = {}
        self.data: dict[str, bytes] = {}
        """The sub-models that a device computes, by digest."""

    def open(self, number: int) -> tuple[Opened, str]:
        """The session of an island, and why the host computes it if a device might."""
        data, why = checked_bytes(self._file, number, self._section), ""
        if self._provider is not None:
            found = self._on_device(number, data) if number in self._movable else ON_HOST
            if isinstance(found, Opened):
                check_ends(self._file, number, found.session)
                self.data[self._file.plan.islands[number].sha256] = data
                return found, ""
            why = found
        key = self._key(number, device=False)
        found = self._made.get(key)
        if not isinstance(found, Opened):
            found = self._made[key] = _on_host(self._ort, self._file, number, data)
        check_ends(self._file, number, found.session)
        return found, why

    def _on_device(self, number: int, data: bytes) -> Opened | str:
        if self._provider is None or isinstance(self._provider, str):
            return self._provider or ""
        key = self._key(number, device=True)
        if key not in self._made:
            self._made[key] = self._provider.open(data, session_options(self._ort))
        return self._made[key]

    def _key(self, number: int, *, device: bool) -> tuple[str, int, bool]:
        return self._file.plan.islands[number].sha256, number if number in self._drawing else -1, device


def drawing(plan: Plan) -> set[int]:
    """The islands that draw random numbers."""
    found: set[int] = set()
    for phase in plan.phases:
        segments = (segment for schedule in phase.schedules for segment in schedule.segments)
        reasons = (reason for segment in segments if isinstance(segment, DynamicSegment) for reason in segment.reasons)
        launches = [phase.launches[reason.launch] for reason in reasons if reason.code is ReasonCode.RANDOM]
        kernels = (kernel for launch in launches for kernel in launch.kernels.values())
        found |= {kernel.island for kernel in kernels if isinstance(kernel, IslandCall)}
    return found


def named(island: Island) -> str:
    """The island and the first of its nodes."""
    nodes = ", ".join(island.nodes[:5]) + (f" and {len(island.nodes) - 5} more" if len(island.nodes) > 5 else "")
    return f"{island.name} (ONNX nodes {nodes})"


def in_users_words(words: str, island: Island) -> str:
    """What ONNX Runtime says of nodes, which a sub-model has numbers for, with the names that the user's file has."""

    def name(found: re.Match[str]) -> str:
        number = int(found[2])
        return f"{found[1]}{island.nodes[number]}'" if number < len(island.nodes) else found[0]

    return re.sub(r"(Name: ?'|name ')(\d{1,9})(?:\.\d+)*'", name, words)


def onnxruntime_for(file: PlanFile) -> Any:
    """The module. Raises PlanError where it is missing."""
    if find_spec("onnxruntime") is None:
        problem = f"expected onnxruntime for the plan's {len(file.plan.islands)} islands, found it not installed"
        raise PlanError(file.path, problem, field="$.islands", next_step="try pip install 'hjgc[ort]'")
    return importlib.import_module("onnxruntime")


def checked_bytes(file: PlanFile, number: int, section: bytes) -> bytes:
    """A sub-model, as the plan names it, that reads no file. Raises PlanError."""
    island = file.plan.islands[number]
    data = section[island.offset : island.offset + island.length]
    if hashlib.sha256(data).hexdigest() != island.sha256:
        problem = f"expected the sha256 that the plan names for {named(island)}, found another"
        raise PlanError(file.path, problem, field=f"$.islands[{number}].sha256", next_step="compile the model again")
    try:
        check_data_inside(data)
    except ValueError as error:
        problem = f"{error}, in {named(island)}"
        raise PlanError(file.path, problem, field=f"$.islands[{number}]", next_step="compile the model again") from None
    return data


def session_options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Else bytes that begin like ONNX Runtime's own format are read as that, whatever they mean as ONNX.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _on_host(ort: Any, file: PlanFile, number: int, data: bytes) -> Opened:
    """Raises PlanError for a sub-model that ONNX Runtime does not take."""
    island = file.plan.islands[number]
    try:
        session = ort.InferenceSession(data, session_options(ort), providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
        words = " ".join(in_users_words(str(error), island).split())[:400]
        problem = f"expected a sub-model that ONNX Runtime takes, found {named(island)}: {words}"
        step = "compile the model again with the onnxruntime of this machine"
        raise PlanError(file.path, problem, field=f"$.islands[{number}]", next_step=step) from None
    return Opened(session, (False,) * len(island.inputs), (False,) * len(island.outputs))


def check_ends(file: PlanFile, number: int, session: Any) -> None:
    """Does the sub-model have the inputs and outputs that the plan names? Raises PlanError."""
    island = file.plan.islands[number]
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
