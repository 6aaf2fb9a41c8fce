"""How does a launch of a plan become a launch of the driver: its function, grid, and the values of its parameters?"""

from __future__ import annotations

import ctypes
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.sizes import Expression, SizeDeclaration, evaluate
from hjgc.plan_format.structs import (
    Argument,
    AttributeArgument,
    Launch,
    OperandArgument,
    ParameterArgument,
    Phase,
    Plan,
    TemplateCall,
    TensorMapArgument,
    ValueArgument,
    Variant,
    call_for,
    template_calls,
)
from hjgc.runtime.backend import Rows
from hjgc.runtime.backends.cuda_code import Loaded
from hjgc.runtime.backends.cuda_driver import TENSOR_MAP_BYTES, Driver, Handle, LaunchShape
from hjgc.runtime.backends.cuda_islands import is_island
from hjgc.runtime.backends.cuda_memory import DeviceMemory

PACKING = {"pointer": "<Q", "scratch": "<Q", "int32": "<i", "int64": "<q", "float32": "<f"}
SLOT = 8
TENSOR_MAP_ALIGNMENT = 64
ROWS_KEPT = 8
"""Row counts, or tuples of sizes, for which a chain keeps its launches."""


class Kernels:
    """What binding a launch of any phase needs: the target's variants as far as loaded, and the memory. Calls whose
    parameters never change are bound once and shared by all that launch them, from any thread."""

    def __init__(
        self, driver: Driver, plan: Plan, target: str, loaded: Sequence[Loaded | None], memory: DeviceMemory
    ) -> None:
        self.driver, self.plan, self.target, self.loaded, self.memory = driver, plan, target, loaded, memory
        self._shared: dict[tuple[str, str, int], BoundCall] = {}
        self._pdl_edges = {
            phase.name: {(edge.before, edge.after) for edge in phase.edges if edge.kind == "pdl"}
            for phase in plan.phases
        }

    def bind_all(self) -> None:
        """Bind every call whose variant is there, so that no request does: a few microseconds each."""
        for phase in self.plan.phases:
            for launch in phase.launches:
                for call in template_calls(launch.kernels[self.target]):
                    if self.loaded[call.variant] is not None:
                        self.bound(phase, launch, call)

    def call(self, launch: Launch, tokens: Rows) -> TemplateCall | None:
        """What serves so many rows; of a function a launch has one call for all sizes."""
        kernel = launch.kernels[self.target]
        if isinstance(tokens, int):
            return call_for(kernel, tokens)
        return kernel if isinstance(kernel, TemplateCall) else None

    def bound(self, phase: Phase, launch: Launch, call: TemplateCall) -> BoundCall:
        key = (phase.name, launch.name, id(call))
        found = self._shared.get(key)
        if found is None:
            found = BoundCall(self, phase, launch, call)
            if not found.varies:
                self._shared[key] = found
        return found

    def pdl_edges(self, phase: Phase) -> set[tuple[int, int]]:
        """The pairs of launches of which the later may start early."""
        return self._pdl_edges[phase.name]

    def overlaps(self, launch: Launch, tokens: Rows) -> bool:
        """Whether the launch is then a kernel that waits for its predecessor by itself."""
        call = self.call(launch, tokens)
        return call is not None and self.plan.variants[call.variant].pdl


class BoundCall:
    """One call with the addresses of its operands filled in. `fit` fills in what depends on the rows."""

    def __init__(self, kernels: Kernels, phase: Phase, launch: Launch, call: TemplateCall) -> None:
        self._variant = kernels.plan.variants[call.variant]
        self.pdl = self._variant.pdl
        loaded = kernels.loaded[call.variant]
        if loaded is None:
            raise RunError(f"expected code for launch {launch.name!r} on {kernels.target}, found a variant not built")
        self._loaded, self.function = loaded, loaded.function
        self._grid = call.grid
        self._sizes = _key_names(phase.sizes)
        self._offsets, size = _offsets(self._variant)
        self._slots = ctypes.create_string_buffer(size + TENSOR_MAP_ALIGNMENT)
        first = ctypes.addressof(self._slots)
        self._start = -first % TENSOR_MAP_ALIGNMENT
        addresses = [first + self._start + offset for offset in self._offsets]
        self._array = (ctypes.c_uint64 * len(addresses))(*addresses)
        self.parameters = ctypes.addressof(self._array)
        self._varying: list[tuple[int, str, Expression]] = []
        for i, argument in _by_slot(self._variant, call.arguments):
            self._fill(i, argument, kernels, phase, launch)
        fixed = not self._varying and all(isinstance(axis, int) for axis in self._grid)
        self._shape = self._fitted(0) if fixed else None

    @property
    def varies(self) -> bool:
        """Do parameters depend on the rows?"""
        return bool(self._varying)

    def _fill(self, slot: int, argument: Argument, kernels: Kernels, phase: Phase, launch: Launch) -> None:
        kind, memory = self._variant.parameters[slot], kernels.memory
        match argument:
            case OperandArgument():
                operand = launch.operands[argument.index]
                self._put(slot, kind, memory.address(operand.space, operand.index, phase.name))
            case TensorMapArgument():
                operand = launch.operands[argument.index]
                address = memory.address(operand.space, operand.index, phase.name)
                dtype = memory.dtype(operand.space, operand.index, phase.name)
                encoded = kernels.driver.tensor_map(
                    address, dtype, argument.sizes, argument.strides, argument.box, argument.swizzle
                )
                at = self._start + self._offsets[slot]
                ctypes.memmove(ctypes.addressof(self._slots) + at, encoded, TENSOR_MAP_BYTES)
            case ParameterArgument():
                self._put(slot, kind, memory.field_address(argument.name))
            case AttributeArgument():
                self._put(slot, kind, launch.attributes[argument.name])
            case ValueArgument():
                self._varying.append((slot, kind, argument.value))

    def _put(self, slot: int, kind: str, value: object) -> None:
        struct.pack_into(PACKING[kind], self._slots, self._start + self._offsets[slot], value)

    def fit(self, tokens: Rows) -> LaunchShape:
        """Set the parameters that depend on the rows; the shape for so many."""
        return self._fitted(tokens) if self._shape is None else self._shape

    def _fitted(self, tokens: Rows) -> LaunchShape:
        rows = [tokens] * len(self._sizes) if isinstance(tokens, int) else tokens
        sizes = dict(zip(self._sizes, rows, strict=True))
        for slot, kind, value in self._varying:
            self._put(slot, kind, evaluate(value, sizes))
        x, y, z = (evaluate(axis, sizes) for axis in self._grid)
        return LaunchShape((x, y, z), self._loaded.threads, self._loaded.shared_bytes)


@dataclass
class _Fitted:
    """The launches of a chain for some rows, as far as they were needed yet."""

    launches: list[tuple[Handle, Handle, int]] = field(default_factory=list[tuple[Handle, Handle, int]])
    bound: list[BoundCall] = field(default_factory=list[BoundCall])
    """What the launches point into."""
    configs: dict[tuple[Any, ...], Handle] = field(default_factory=dict[tuple[Any, ...], Handle])
    """By shape and overlap: the layers of a model need the same few."""


class Chain:
    """Launches of one phase that run one by one in a stream, fitted once to each of the rows that calls had lately."""

    def __init__(self, kernels: Kernels, phase: Phase, numbers: Sequence[int], stream: Handle) -> None:
        self._kernels, self._phase, self._numbers, self._stream = kernels, phase, tuple(numbers), stream
        self._fitted: OrderedDict[Rows, _Fitted] = OrderedDict()

    def run(self, tokens: Rows, stop: Callable[[], bool] | None, ahead: int | None = None) -> bool:
        """Launch all, unless `stop` says yes before one of them; wait for the device every `ahead` launches. Returns
        whether all ran."""
        launch, fitted = self._kernels.driver.launch, self._fitted_to(tokens)
        for i, number in enumerate(self._numbers):
            if ahead is not None and i and i % ahead == 0:
                self._kernels.driver.wait(self._stream)
            if stop is not None and stop():
                return False
            # Fitted launch by launch, so that the device works while the host prepares the next one.
            if i >= len(fitted.launches):
                self._fit(fitted, number, tokens)
            launch(*fitted.launches[i])
        return True

    def _fitted_to(self, tokens: Rows) -> _Fitted:
        if tokens not in self._fitted:
            self._fitted[tokens] = _Fitted()
            if len(self._fitted) > ROWS_KEPT:
                self._fitted.popitem(last=False)
        self._fitted.move_to_end(tokens)
        return self._fitted[tokens]

    def _fit(self, fitted: _Fitted, number: int, tokens: Rows) -> None:
        """A few microseconds: the first prompt of a length waits for as many of these as it has launches."""
        bound = _bound(self._kernels, self._phase, self._phase.launches[number], tokens)
        shape = bound.fit(tokens)
        key = (shape.grid, shape.threads, shape.shared_bytes, self._may_overlap(fitted, bound))
        config = fitted.configs.get(key)
        if config is None:
            config = self._kernels.driver.configure(shape, key[-1], self._stream)
            fitted.configs[key] = config
        fitted.bound.append(bound)
        fitted.launches.append((config, bound.function, bound.parameters))

    def _may_overlap(self, fitted: _Fitted, bound: BoundCall) -> bool:
        """In a stream only the launch just before counts: every kernel that overlaps also waits until that one has
        finished, and so, in turn, for all before it. The first waits for whatever the stream held."""
        i = len(fitted.launches)
        if i == 0 or not bound.pdl or not fitted.bound[-1].pdl:
            return False
        return (self._numbers[i - 1], self._numbers[i]) in self._kernels.pdl_edges(self._phase)


class GraphBuilder:
    """Builds graphs of one phase's launches, node by node, with the plan's edges. `record` makes graphs of islands, if
    there are any among them. One thread at a time."""

    def __init__(
        self, kernels: Kernels, phase: Phase, record: Callable[[Phase, int, Rows], Handle] | None = None
    ) -> None:
        self._kernels, self._phase, self._record = kernels, phase, record
        self._before: dict[int, list[tuple[int, str]]] = {}
        for edge in phase.edges:
            self._before.setdefault(edge.after, []).append((edge.before, edge.kind))

    def build(self, numbers: Sequence[int], tokens: Rows, pause: Callable[[], None] | None = None) -> Handle:
        """A graph of these launches for so many rows. `pause` is called before each node. The caller drops the graph.
        Raises DriverError, BackendRefused."""
        driver, launches = self._kernels.driver, self._phase.launches
        graph = driver.make_graph()
        try:
            growing = _Growing(graph)
            for number in numbers:
                if pause is not None:
                    pause()
                if is_island(launches[number]):
                    self._add_island(growing, number, tokens)
                else:
                    self._add_kernel(growing, number, tokens)
        except BaseException:
            driver.drop_graph(graph)
            raise
        return graph

    def _add_kernel(self, growing: _Growing, number: int, tokens: Rows) -> None:
        kernels, launch = self._kernels, self._phase.launches[number]
        bound = _bound(kernels, self._phase, launch, tokens)
        before = [edge for edge in self._before.get(number, ()) if edge[0] in growing.added]
        overlaps = kernels.overlaps(launch, tokens)
        early = [kind == "pdl" and overlaps and growing.overlapping[earlier] for earlier, kind in before]
        nodes = [growing.added[earlier] for earlier, _ in before]
        if not nodes:
            nodes, early = growing.behind, [False] * len(growing.behind)
        call = (bound.function, bound.parameters)
        node = kernels.driver.add_kernel(growing.graph, bound.fit(tokens), call, nodes, early)
        growing.add(number, node, overlaps, [earlier for earlier, _ in before])

    def _add_island(self, growing: _Growing, number: int, tokens: Rows) -> None:
        """Behind all that was added before, and before all that is added after."""
        driver = self._kernels.driver
        assert self._record is not None, "launches without islands"
        recorded = self._record(self._phase, number, tokens)
        try:
            growing.pass_by(driver.add_child(growing.graph, recorded, growing.ends()))
        finally:
            driver.drop_graph(recorded)


@dataclass
class _Growing:
    """A graph under construction: the launches `added` since the last island, which lies `behind` them."""

    graph: Handle
    added: dict[int, Handle] = field(default_factory=dict[int, Handle])
    overlapping: dict[int, bool] = field(default_factory=dict[int, bool])
    awaited: set[int] = field(default_factory=set[int])
    behind: list[Handle] = field(default_factory=list[Handle])

    def add(self, number: int, node: Handle, overlaps: bool, before: Sequence[int]) -> None:
        self.added[number], self.overlapping[number] = node, overlaps
        self.awaited.update(before)

    def ends(self) -> list[Handle]:
        """What nothing added waits for yet."""
        return [node for number, node in self.added.items() if number not in self.awaited] or self.behind

    def pass_by(self, island: Handle) -> None:
        self.behind = [island]
        self.added.clear()


def _bound(kernels: Kernels, phase: Phase, launch: Launch, tokens: Rows) -> BoundCall:
    call = kernels.call(launch, tokens)
    if call is None:
        raise RunError(f"expected a kernel of launch {launch.name!r} for {tokens} rows on {kernels.target}, found none")
    return kernels.bound(phase, launch, call)


def _by_slot(variant: Variant, arguments: Sequence[Argument]) -> list[tuple[int, Argument]]:
    """Arguments fill the parameters in order; scratch parameters take none and stay null."""
    slots = [i for i, kind in enumerate(variant.parameters) if kind != "scratch"]
    return list(zip(slots, arguments, strict=True))


def _offsets(variant: Variant) -> tuple[list[int], int]:
    """Where each parameter's value lies, and the bytes of all."""
    offsets: list[int] = []
    end = 0
    for kind in variant.parameters:
        wide = kind == "tensor_map"
        end = -(-end // TENSOR_MAP_ALIGNMENT) * TENSOR_MAP_ALIGNMENT if wide else end
        offsets.append(end)
        end += TENSOR_MAP_BYTES if wide else SLOT
    return offsets, end


def _key_names(sizes: Sequence[SizeDeclaration]) -> list[str]:
    return [size.name for size in sizes if size.lives == "key"]
