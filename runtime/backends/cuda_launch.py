"""How does a launch of a plan become a launch of the driver: its function, grid, and the values of its parameters?"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence

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
    ValueArgument,
    Variant,
)
from hjgc.runtime.backends.cuda_driver import Driver, Handle, LaunchShape
from hjgc.runtime.backends.cuda_memory import DeviceMemory

PACKING = {"pointer": "<Q", "scratch": "<Q", "int32": "<i", "int64": "<q", "float32": "<f"}
SLOT = 8


class Kernels:
    """What binding a launch of any phase needs: the target's variants as loaded functions, and the memory."""

    def __init__(self, plan: Plan, target: str, functions: Sequence[Handle | None], memory: DeviceMemory) -> None:
        self.plan, self.target, self.functions, self.memory = plan, target, functions, memory

    def call(self, launch: Launch) -> TemplateCall | None:
        kernel = launch.kernels[self.target]
        return kernel if isinstance(kernel, TemplateCall) else None

    def overlaps(self, launch: Launch) -> bool:
        """Whether the launch is a kernel that waits for its predecessor by itself."""
        call = self.call(launch)
        return call is not None and self.plan.variants[call.variant].pdl


class BoundLaunch:
    """One launch with the addresses of its operands filled in. `fit` fills in what depends on the rows."""

    def __init__(self, kernels: Kernels, phase: Phase, launch: Launch) -> None:
        call = kernels.call(launch)
        assert call is not None, "the backend refuses plans with other calls when it opens them"
        self._variant = kernels.plan.variants[call.variant]
        self.function = kernels.functions[call.variant]
        self._grid = call.grid
        self._sizes = _key_names(phase.sizes)
        self._slots = ctypes.create_string_buffer(SLOT * len(self._variant.parameters))
        first = ctypes.addressof(self._slots)
        addresses = [first + SLOT * i for i in range(len(self._variant.parameters))]
        self._array = (ctypes.c_uint64 * len(addresses))(*addresses)
        self.parameters = ctypes.addressof(self._array)
        self._varying: list[tuple[int, str, Expression]] = []
        for i, argument in _by_slot(self._variant, call.arguments):
            self._fill(i, argument, kernels.memory, phase, launch)

    def _fill(self, slot: int, argument: Argument, memory: DeviceMemory, phase: Phase, launch: Launch) -> None:
        kind = self._variant.parameters[slot]
        match argument:
            case OperandArgument():
                operand = launch.operands[argument.index]
                self._put(slot, kind, memory.address(operand.space, operand.index, phase.name))
            case ParameterArgument():
                self._put(slot, kind, memory.field_address(argument.name))
            case AttributeArgument():
                self._put(slot, kind, launch.attributes[argument.name])
            case ValueArgument():
                self._varying.append((slot, kind, argument.value))

    def _put(self, slot: int, kind: str, value: object) -> None:
        struct.pack_into(PACKING[kind], self._slots, SLOT * slot, value)

    def fit(self, tokens: int) -> LaunchShape:
        """Set the parameters that depend on the rows; the shape for so many."""
        sizes = dict.fromkeys(self._sizes, tokens)
        for slot, kind, value in self._varying:
            self._put(slot, kind, evaluate(value, sizes))
        x, y, z = (evaluate(axis, sizes) for axis in self._grid)
        return LaunchShape((x, y, z), self._variant.threads, self._variant.shared_bytes)


class Chain:
    """Launches of one phase that run one by one in a stream, bound once, fitted again when the rows change."""

    def __init__(self, driver: Driver, kernels: Kernels, phase: Phase, numbers: Sequence[int], stream: Handle) -> None:
        self._driver, self._stream = driver, stream
        self._launches = [BoundLaunch(kernels, phase, phase.launches[number]) for number in numbers]
        self._overlap = _overlaps_predecessor(kernels, phase, numbers)
        self._configs: list[Handle] = [None] * len(numbers)
        self._tokens = [0] * len(numbers)

    def run(self, tokens: int, stop: Callable[[], bool] | None) -> bool:
        """Launch all, unless `stop` says yes before one of them. Returns whether all ran."""
        for i, launch in enumerate(self._launches):
            if stop is not None and stop():
                return False
            if self._tokens[i] != tokens:
                self._fit(i, launch, tokens)
            self._driver.launch(self._configs[i], launch.function, launch.parameters)
        return True

    def _fit(self, i: int, launch: BoundLaunch, tokens: int) -> None:
        self._configs[i] = self._driver.configure(launch.fit(tokens), self._overlap[i], self._stream)
        self._tokens[i] = tokens


class GraphBuilder:
    """Builds graphs of one phase's launches, node by node, with the plan's edges. All launches are bound up front, so
    that building takes little of the interpreter lock, which is what disturbs a request most. One thread at a time."""

    def __init__(self, driver: Driver, kernels: Kernels, phase: Phase) -> None:
        self._driver, self._phase = driver, phase
        kernel_launches = {i: launch for i, launch in enumerate(phase.launches) if kernels.call(launch)}
        self._launches = {i: BoundLaunch(kernels, phase, launch) for i, launch in kernel_launches.items()}
        self._nodes: dict[int, Handle] = {}
        self._before = _predecessors(kernels, phase, range(len(phase.launches)))
        self._tokens = 0

    def build(self, numbers: Sequence[int], tokens: int) -> Handle:
        """A graph of these launches for so many rows. The caller drops it. Raises DriverError."""
        if tokens != self._tokens or not self._nodes:
            self._fit(tokens)
        graph = self._driver.make_graph()
        try:
            added: dict[int, Handle] = {}
            for number in numbers:
                before = [edge for edge in self._before[number] if edge[0] in added]
                nodes, early = [added[earlier] for earlier, _ in before], [kind for _, kind in before]
                added[number] = self._driver.add_kernel(graph, self._nodes[number], nodes, early)
        except BaseException:
            self._driver.drop_graph(graph)
            raise
        return graph

    def _fit(self, tokens: int) -> None:
        for number, launch in self._launches.items():
            shape = launch.fit(tokens)
            if number in self._nodes:
                self._driver.resize(self._nodes[number], shape)
            else:
                self._nodes[number] = self._driver.make_node(shape, launch.function, launch.parameters)
        self._tokens = tokens


def _predecessors(kernels: Kernels, phase: Phase, numbers: Sequence[int]) -> dict[int, list[tuple[int, bool]]]:
    """For each launch those among `numbers` that it comes after, and whether it may start once they have triggered."""
    found: dict[int, list[tuple[int, bool]]] = {number: [] for number in numbers}
    for edge in phase.edges:
        if edge.before in found and edge.after in found:
            ends = (phase.launches[edge.before], phase.launches[edge.after])
            found[edge.after].append((edge.before, edge.kind == "pdl" and all(map(kernels.overlaps, ends))))
    return found


def _overlaps_predecessor(kernels: Kernels, phase: Phase, numbers: Sequence[int]) -> list[bool]:
    """In a stream only the launch just before counts: every kernel that overlaps also waits until that one has
    finished, and so, in turn, for all before it. The first waits for whatever the stream held."""
    before = _predecessors(kernels, phase, numbers)
    return [i > 0 and (numbers[i - 1], True) in before[number] for i, number in enumerate(numbers)]


def _by_slot(variant: Variant, arguments: Sequence[Argument]) -> list[tuple[int, Argument]]:
    """Arguments fill the parameters in order; scratch parameters take none and stay null."""
    slots = [i for i, kind in enumerate(variant.parameters) if kind != "scratch"]
    return list(zip(slots, arguments, strict=True))


def _key_names(sizes: Sequence[SizeDeclaration]) -> list[str]:
    return [size.name for size in sizes if size.lives == "key"]
