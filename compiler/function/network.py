"""What does a whole ONNX model compute, as a function: launches in order, islands for the rest, named ends?"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import Sequential, common

from hjgc.compiler.function import contents, islands, types
from hjgc.compiler.function.asking import ask_onnx_runtime
from hjgc.compiler.function.fuse import fuse
from hjgc.compiler.function.fusion import fuse_for_gpus, keep_wide_for_cpu
from hjgc.compiler.function.fusion.flow import Workshop
from hjgc.compiler.function.islands import Group, Partition, SubModel, clean
from hjgc.compiler.function.lowering import Context, HostOnly, Lowering, NotNative
from hjgc.compiler.function.rules import register_all
from hjgc.compiler.normalise import refusing
from hjgc.compiler.options import DEFAULT_SIZE, Options
from hjgc.compiler.program import End, Network, Program, Step, Tensor
from hjgc.compiler.tables import Tables, dtype_of
from hjgc.plan_format import dims
from hjgc.plan_format.checker import brief
from hjgc.plan_format.errors import CompileError, InputError
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.sizes import Expression, Size, SizeDeclaration
from hjgc.plan_format.structs import DTypes, HostValue

PHASE = "call"


def normalise(model: ir.Model, path: Path) -> ir.Model:
    """In place: functions inlined, nodes sorted, constants among the initializers, every value named, and its type and
    shape as far as ONNX and ONNX Runtime can tell. Raises CompileError for a graph that this is not possible for."""
    with _quiet(), refusing(path):
        _passes(model)
        ask_onnx_runtime(model)
    return model


def _passes(model: ir.Model) -> None:
    Sequential(
        common.InlinePass(),
        common.TopologicalSortPass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
        common.ShapeInferencePass(strict_mode=False),
    )(model)


@contextmanager
def _quiet() -> Generator[None]:
    """Where shape inference gives up, it logs a traceback and goes on: nothing that a user could mend."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def build_function(model: ir.Model, options: Options, path: Path) -> tuple[Network, list[Path]]:
    """The network and the weight files it names. Raises CompileError, InputError."""
    register_all()
    return _Function(model, options, path).network()


@dataclass
class _Sizes:
    """The sizes that the inputs' shapes name, in order, with the ranges that the user gave."""

    ranges: Mapping[str, tuple[int, int]]
    alone: Set[str] = frozenset()
    """What some input has as an axis by itself: nothing else could be known from the inputs of a call."""

    def __post_init__(self) -> None:
        self.declared: dict[str, SizeDeclaration] = {}
        self._names: dict[str, Size] = {}

    def check_names(self) -> None:
        """Raises InputError for a range that is of no input's size."""
        unknown = next((name for name in self.ranges if name not in self.declared), None)
        if unknown is not None:
            names = ", ".join(self.declared) or "none, since every axis has a number"
            raise InputError("--size", f"expected a size of the model's inputs ({names}), found {unknown!r}")

    def axis(self, value: ir.Value, place: int, axis: int | ir.SymbolicDim) -> Expression:
        """What an axis of an input is: a number, a size, or an expression of sizes that other axes give."""
        if isinstance(axis, int):
            return axis
        text = str(axis.value or "")
        found = None if types.is_anonymous(text) else types.spelt_dimension(text, self._alone)
        return self._declare(f"{value.name}.{place}") if found is None else found

    def _alone(self, text: str) -> Size | None:
        return self._named(text) if text in self.alone else None

    def _named(self, text: str) -> Size:
        if text not in self._names:
            self._names[text] = self._declare(text)
        return self._names[text]

    def _declare(self, text: str) -> Size:
        wanted = types.size_name(text)
        name = next(name for i in count(1) if (name := wanted if i == 1 else f"{wanted}.{i}") not in self.declared)
        low, high = self.ranges.get(name, DEFAULT_SIZE)
        self.declared[name] = SizeDeclaration(name, low, high, "key")
        return Size(name)

    def known(self, text: str) -> Expression | None:
        """What a name among the model's own shapes stands for, if an input has it."""
        return self._names.get(text)


class _Function:
    """One model on its way."""

    def __init__(self, model: ir.Model, options: Options, path: Path) -> None:
        self.model, self.path = model, path
        self.tables = Tables(path, "float32")
        ranges = {name: (low, high) for name, low, high in options.sizes}
        self.sizes = _Sizes(ranges, types.plain_names(model.graph.inputs))
        gpus = tuple(target for target in options.targets if target != "cpu")
        self.context = Context(self.tables, model.graph, model.opset_imports, self.sizes.declared, gpus)
        self.values: dict[ir.Value, int] = {}
        self.names: dict[ir.Value, str] = {}
        self.why: dict[ir.Node, NotNative] = {}
        self.models: list[SubModel] = []

    def network(self) -> tuple[Network, list[Path]]:
        if not self.model.graph.outputs:
            raise CompileError(self.path, "expected a model that gives something, found one without outputs")
        arguments = [self._argument(value) for value in self.model.graph.inputs]
        self.sizes.check_names()
        for node in self.model.graph:
            self._visit(node)
        results, copies = self._results()
        steps = fuse((*self._ordered(), *copies), [end.tensor.name for end in results])
        steps = self._for_targets(steps, results)
        program = Program(
            PHASE,
            tuple(self.sizes.declared.values()),
            (),
            steps,
            function=True,
            arguments=tuple(arguments),
            results=tuple(results),
            values=tuple(HostValue(self._value_name(value), types.type_text(value)) for value in self.values),
        )
        table, section = islands.table(self.models)
        network = Network(
            dtypes=DTypes("float32", "float32", "float32", "float32", "float32"),
            weights=tuple(self.tables.weights.values()),
            constants=tuple(self.tables.constants.values()),
            constant_bytes=bytes(self.tables.constant_bytes),
            states=(),
            programs=(program,),
            vocab_size=0,
            layers=0,
            islands=table,
            island_bytes=section,
        )
        return network, self.tables.files

    def _for_targets(self, steps: tuple[Step, ...], results: list[End]) -> tuple[Step, ...]:
        context, kept = self.context, [end.tensor.name for end in results]
        workshop = Workshop(self.tables, context.targets, context.limits, context.unique)
        if not context.targets:
            return keep_wide_for_cpu(steps, kept, workshop)
        return self.tables.keep(fuse_for_gpus(steps, kept, workshop))

    def _argument(self, value: ir.Value) -> End:
        """What the caller gives: in a buffer, if one can hold it."""
        if clean(value.name or "") != value.name:
            problem = "expected names of up to 500 printable characters, found another"
            raise CompileError(self.path, problem, field=f"input {brief(value.name)}", next_step="rename it")
        text = types.type_text(value)
        shape, dtype = self._argument_shape(value), dtype_of(value)
        if shape is None or dtype is None:
            rank = ", of no known rank" if shape is None else ""
            why = NotNative(ReasonCode.HOST_TYPE, f"its operand is of type {text}{rank}", value.name or "")
            self.context.held[value] = HostOnly(why)
            return End(value.name or "", self._host_value(value), text, shape)
        tensor = Tensor(self._value_name(value), "buffer", dtype, shape)
        self.context.held[value] = tensor
        return End(value.name or "", tensor, text, shape)

    def _argument_shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        if value.shape is None or not isinstance(value.type, ir.TensorType) or len(value.shape) > 8:
            return None
        return tuple(self.sizes.axis(value, i, axis) for i, axis in enumerate(value.shape))

    def _visit(self, node: ir.Node) -> None:
        """Sizes alone, launches, or a part of an island."""
        context = self.context
        found = contents.of_node(node, node.version or 0, context.contents, context.shape, context.limits)
        if found is not None:
            self.context.known[node.outputs[0]] = found
            if not node.outputs[0].is_graph_output():
                return
        why = self.context.lower(node)
        if why is None:
            return
        self.why[node] = why
        for value in node.outputs:
            if value.name:
                self.context.held[value] = self._from_island(value)

    def _from_island(self, value: ir.Value) -> Tensor | HostOnly:
        """A buffer where its type and shape are known before."""
        shape = types.axes(value, lambda text: types.spelt_dimension(text, self.sizes.known))
        dtype = dtype_of(value)
        if dtype is None:
            return HostOnly(NotNative(ReasonCode.HOST_TYPE, f"of type {types.type_text(value)}", value.name or ""))
        known = tuple(axis for axis in shape or () if axis is not None)
        if shape is None or len(known) != len(shape) or len(shape) > 8 or not self.context.fits(known):
            why = "the shape of its operand is not known before"
            return HostOnly(NotNative(ReasonCode.DATA_DEPENDENT_SHAPE, why, value.name or ""))
        return Tensor(self._value_name(value), "buffer", dtype, tuple(map(dims.canonical, known)))

    def _results(self) -> tuple[list[End], list[Step]]:
        """What the caller gets. What lies elsewhere than in a buffer of its own is copied into one."""
        results: list[End] = []
        copies: list[Step] = []
        own = {id(tensor) for steps in self.context.steps.values() for step in steps
               for role, tensor in step.operands.items() if role[0] == "y"}  # fmt: skip
        for value in self.model.graph.outputs:
            held = self.context.hold(value)
            text, maker = types.type_text(value), value.producer()
            if isinstance(held, HostOnly) or maker in self.why:
                shape = held.shape if isinstance(held, Tensor) else types.axes(value, self.sizes.known)
                if isinstance(held, Tensor) and self._in_buffer(value):
                    results.append(End(value.name or "", held, text, tuple(held.shape)))
                else:
                    results.append(End(value.name or "", self._host_value(value), text, shape))
                continue
            if id(held) not in own:
                held = self._copy(value, held, copies)
            results.append(End(value.name or "", held, text, tuple(held.shape)))
        return results, copies

    def _in_buffer(self, value: ir.Value) -> bool:
        """Does what an island gives go into a buffer, if it can? Where a launch of ours reads it; and always on a GPU,
        where ONNX Runtime computes in place what lies in buffers."""
        return bool(self.context.targets) or any(user in self.context.steps for user, _ in value.uses())

    def _copy(self, value: ir.Value, tensor: Tensor, copies: list[Step]) -> Tensor:
        lowering = Lowering(self.context, ir.Node("hjgc", "Copy", [], num_outputs=1, name=f"{value.name}.copy"), 1)
        lowering.steps = copies
        made = lowering.elementwise("x0", tensor)
        copies[-1] = replace(copies[-1], nodes=())
        return made

    def _ordered(self) -> Iterable[Step]:
        """The steps of all nodes, islands between them."""
        running = [node for node in self.model.graph if node in self.context.steps or node in self.why]
        partition = Partition(self.model.graph, running, set(self.why), self.context.contents)
        for entry in partition.order():
            if isinstance(entry, Group):
                yield self._island(entry, partition)
            else:
                yield from self.context.steps[entry]

    def _island(self, group: Group, partition: Partition) -> Step:
        model, inputs, outputs = islands.build(self.model, self.context, group, partition.wanted)
        number = len(self.models)
        self.models.append(model)
        operands = {f"x{i}": self._taken(value) for i, value in enumerate(inputs)}
        operands |= {f"y{i}": self._given(value) for i, value in enumerate(outputs)}
        values = {f"y{i}": value.name or "" for i, value in enumerate(outputs)}
        name = self.context.step_name(f"island.{number}", set())
        causes = tuple(islands.causes({node: self.why[node] for node in group.nodes}))
        return Step(name, "island", operands, {}, model.nodes, values, island=number, causes=causes)

    def _taken(self, value: ir.Value) -> Tensor:
        return self._given(value) if value.producer() in self.why else self._held(value)

    def _given(self, value: ir.Value) -> Tensor:
        """What an island gives: in a buffer, or with the host."""
        return self._held(value) if self._in_buffer(value) else self._host_value(value)

    def _held(self, value: ir.Value) -> Tensor:
        held = self.context.hold(value)
        return held if isinstance(held, Tensor) else self._host_value(value)

    def _host_value(self, value: ir.Value) -> Tensor:
        number = self.values.setdefault(value, len(self.values))
        return Tensor(self._value_name(value), "value", "uint8", (), number)

    def _value_name(self, value: ir.Value) -> str:
        if value not in self.names:
            self.names[value] = self.context.unique(clean(value.name or "value"))
        return self.names[value]
