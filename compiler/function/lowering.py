"""How does an ONNX node become launches: what a rule is given, and what it may say?

A rule takes a `Lowering` and emits steps for one node; it raises NotNative where the node is none of ours, and the node
goes to an island with that reason. Rules are found by operator in `RULES`, to which `lowers` adds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import onnx_ir as ir

from hjgc.compiler.function import contents
from hjgc.compiler.function.choice import choose_tensor
from hjgc.compiler.function.contents import Contents
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step, Tensor
from hjgc.compiler.rules.rule import node_name
from hjgc.compiler.tables import ALL_DTYPES, Tables, dtype_of
from hjgc.plan_format import dims
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import number
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import numbers
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.sizes import Expression, SizeDeclaration, bounds, spell
from hjgc.plan_format.structs import Attribute

MAX_AXES = 8


@dataclass(frozen=True)
class NotNative(Exception):
    """The node is no launch of ours: why, in one sentence, and what it is about."""

    code: ReasonCode
    why: str
    about: str = ""


@dataclass(frozen=True)
class HostOnly:
    """A value that no buffer holds: why."""

    why: NotNative


Held = Tensor | HostOnly


class Context:
    """What is known of a model's values while its nodes are lowered in order."""

    def __init__(
        self,
        tables: Tables,
        graph: ir.Graph,
        opsets: Mapping[str, int],
        declared: Mapping[str, SizeDeclaration],
        targets: tuple[str, ...] = (),
    ) -> None:
        """`declared`: the sizes that the arguments name, as they come to be known; `targets`: GPUs that every step
        needs a kernel for."""
        self.tables, self.graph, self.opsets, self.declared = tables, graph, opsets, declared
        self.targets = targets
        self.held: dict[ir.Value, Held] = {}
        self.known: dict[ir.Value, Contents | None] = {}
        self.steps: dict[ir.Node, list[Step]] = {}
        self._taken: set[str] = set()
        self._names: set[str] = set()

    def contents(self, value: ir.Value) -> Contents | None:
        """The numbers and sizes in a small tensor, if they are known."""
        if value not in self.known:
            tensor = value.const_value if value.is_initializer() else None
            self.known[value] = None if tensor is None or value.is_graph_input() else contents.of_tensor(tensor)
        return self.known[value]

    def limits(self, axis: Expression) -> tuple[int, int]:
        """The least and the most that a size may be."""
        ranges = {name: (size.low, size.high) for name, size in self.declared.items()}
        try:
            return bounds(axis, ranges)
        except (ZeroDivisionError, OverflowError, KeyError) as error:
            raise ValueError(f"expected a size with bounds, found {spell(axis)}") from error

    def fits(self, shape: Sequence[Expression]) -> bool:
        """Can a buffer have this shape at every size?"""
        try:
            return all(self.limits(axis)[0] >= 0 for axis in shape)
        except ValueError:
            return False

    def shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        found = self.hold(value)
        return tuple(found.shape) if isinstance(found, Tensor) else None

    def hold(self, value: ir.Value) -> Held:
        """Where the value lies. One that is known from sizes alone is computed after all, if somebody wants it."""
        if value not in self.held:
            self.held[value] = self._constant(value)
        return self.held[value]

    def _constant(self, value: ir.Value) -> Held:
        maker = value.producer()
        if value.is_initializer() and value.const_value is not None:
            if value.const_value.dtype not in ALL_DTYPES:
                kind = value.const_value.dtype.name.lower()
                return HostOnly(NotNative(ReasonCode.HOST_TYPE, f"its operand is of type {kind}", value.name or ""))
            return self.tables.tensor(value)
        found = self.known.get(value)
        whole = None if found is None else contents.numbers(found)
        dtype = dtype_of(value)
        if found is not None and whole is not None and dtype is not None:
            return self.tables.whole_numbers(value.name or "sizes", whole, found.shape, dtype)
        if maker is not None and found is not None:
            why = self.lower(maker)
            return self.held[value] if why is None else HostOnly(why)
        why = NotNative(
            ReasonCode.DATA_DEPENDENT_SHAPE, "the shape of its operand is not known before", value.name or ""
        )
        return HostOnly(why)

    def lower(self, node: ir.Node) -> NotNative | None:
        """Emit the node's steps. Why not, if it is none of ours: nothing is emitted then."""
        domain, rule = standard_domain(node), rule_of(node)
        kind = f"{domain or 'ai.onnx'}.{node.op_type}"
        if rule is None:
            return unknown_operator(node)
        lowering = Lowering(self, node, node.version or self.opsets.get(domain, 1))
        try:
            rule(lowering)
            self._check_kernels(lowering.steps)
        except NotNative as why:
            return why
        except (ValueError, IndexError, KeyError, ZeroDivisionError, OverflowError) as error:  # odd attributes
            return NotNative(ReasonCode.NO_TEMPLATE, f"{kind}: {error}")
        for value, tensor in lowering.made.items():
            self.held[value] = tensor
        self.steps[node] = lowering.steps
        self._names.update(step.name for step in lowering.steps)
        return None

    def _check_kernels(self, steps: Sequence[Step]) -> None:
        """Raises NotNative for the first step that a GPU has no kernel for."""
        for step in steps:
            for target in self.targets:
                try:
                    choose_tensor(step, target, self.limits)
                except NoTemplate as why:
                    raise NotNative(ReasonCode.NO_TEMPLATE, f"on {target}, {why}") from None

    def unique(self, wanted: str) -> str:
        """A name that no other tensor of the network has: files name their values as they like."""
        name = next(name for i in count(1) if (name := wanted if i == 1 else f"{wanted}~{i}") not in self._taken)
        self._taken.add(name)
        return name

    def step_name(self, wanted: str, taken: set[str]) -> str:
        clean = re.sub(r"[^\x21-\x7e]+", "_", wanted)[:200] or "step"
        spellings = (clean if i == 1 else f"{clean}.{i}" for i in count(1))
        return next(name for name in spellings if name not in self._names and name not in taken)


CONTROL_FLOW = ("If", "Loop", "Scan")
RANDOM = (
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Sampling",
)  # fmt: skip
DATA_DEPENDENT = ("NonZero", "Unique", "Compress", "NonMaxSuppression")


def unknown_operator(node: ir.Node) -> NotNative:
    """Why a node whose operator no rule lowers cannot be captured."""
    kind = f"{node.domain or 'ai.onnx'}.{node.op_type}"
    if node.op_type in CONTROL_FLOW:
        return NotNative(ReasonCode.HOST_CONTROL_FLOW, f"{kind} chooses what is computed")
    if draws(node):
        return drawn(node)
    if node.op_type in DATA_DEPENDENT:
        return NotNative(ReasonCode.DATA_DEPENDENT_SHAPE, f"the shape that {kind} gives depends on numbers")
    return NotNative(ReasonCode.NO_TEMPLATE, f"no launch of ours computes {kind}")


def draws(node: ir.Node) -> bool:
    """Does the node itself draw random numbers, or may it? The graphs that it has are not looked at."""
    if node.op_type == "Dropout":
        return len(node.inputs) > 2 and not _is_false(node.inputs[2])
    return node.op_type in RANDOM


def _is_false(value: ir.Value | None) -> bool:
    """Nothing, or a constant that says no."""
    if value is None:
        return True
    tensor = value.const_value if value.is_initializer() and not value.is_graph_input() else None
    return tensor is not None and not tensor.numpy().any()


def drawn(node: ir.Node) -> NotNative:
    return NotNative(ReasonCode.RANDOM, f"{node.domain or 'ai.onnx'}.{node.op_type} draws random numbers")


class Lowering:
    """One node being lowered: its operands and attributes, and the steps it becomes. `version` is the opset's."""

    def __init__(self, context: Context, node: ir.Node, version: int) -> None:
        self.context, self.node, self.version = context, node, version
        self.steps: list[Step] = []
        self.made: dict[ir.Value, Tensor] = {}

    @property
    def count(self) -> int:
        return len(self.node.inputs)

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def wants(self, index: int) -> bool:
        """Does anybody use this result?"""
        outputs = self.node.outputs
        return (
            index < len(outputs)
            and bool(outputs[index].name)
            and (bool(outputs[index].uses()) or outputs[index].is_graph_output())
        )

    def x(self, index: int) -> Tensor:
        """An operand that launches can read."""
        value = self._input(index)
        found = self.context.hold(value)
        if isinstance(found, HostOnly):
            raise NotNative(found.why.code, found.why.why, value.name or "")
        return found

    def optional(self, index: int) -> Tensor | None:
        return self.x(index) if self.has(index) else None

    def sizes(self, index: int) -> tuple[Expression, ...]:
        """An operand of numbers and sizes, known at compile time."""
        value = self._input(index)
        found = self.context.contents(value)
        if found is None:
            why = f"operand {index} of {self.node.op_type} decides about shapes and is computed at run time"
            raise NotNative(ReasonCode.HOST_READ, why, value.name or "")
        return contents.sizes(found)

    def ints(self, index: int) -> tuple[int, ...]:
        """An operand of whole numbers, known at compile time."""
        found = numbers(self.sizes(index))
        if found is None:
            raise NotNative(ReasonCode.NO_TEMPLATE, f"operand {index} of {self.node.op_type} depends on a size")
        return found

    def ints_or(self, index: int, attribute: str) -> tuple[int, ...] | None:
        """Whole numbers from an operand, or from an attribute as in older opsets; None if there are none."""
        if self.has(index):
            return self.ints(index)
        return tuple(self.node.attributes[attribute].as_ints()) if attribute in self.node.attributes else None

    def constant(self, index: int) -> list[float]:
        """An operand of numbers of any type that stands in the model, flat."""
        value = self._input(index)
        tensor = value.const_value if value.is_initializer() and not value.is_graph_input() else None
        if tensor is None or tensor.size > contents.MOST:
            why = f"operand {index} of {self.node.op_type} is no small constant"
            raise NotNative(ReasonCode.HOST_READ, why, value.name or "")
        return [float(item) for item in tensor.numpy().reshape(-1)]

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)

    def number(self, name: str, default: float) -> float:
        return self.node.attributes.get_float(name, default)

    def text(self, name: str, default: str) -> str:
        return self.node.attributes.get_string(name, default)

    def integers(self, name: str) -> tuple[int, ...] | None:
        return tuple(self.node.attributes[name].as_ints()) if name in self.node.attributes else None

    def emit(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        attributes: Mapping[str, Attribute] | None = None,
        outputs: Sequence[TensorType] = (),
    ) -> Tensor:
        """A step with one result. `outputs`: what is claimed of it, where the op leaves it open."""
        return self.emit_all(op, inputs, attributes, outputs)[0]

    def emit_all(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        attributes: Mapping[str, Attribute] | None = None,
        outputs: Sequence[TensorType] = (),
    ) -> tuple[Tensor, ...]:
        """A step, and its results. Raises ValueError where the op does not take these operands."""
        infer = all_ops()[op].infer
        assert infer is not None, "a tensor op"
        given = dict(attributes or {})
        types = [None if x is None else TensorType(x.dtype, tuple(x.shape)) for x in inputs]
        found = infer(types, outputs, given)
        for entry in found:
            self._check_shape(entry.shape)
        name = self.context.step_name(node_name(self.node) or op, {step.name for step in self.steps})
        made = tuple(
            Tensor(self.context.unique(f"{name}.y{i}"), "buffer", entry.dtype, tuple(map(dims.canonical, entry.shape)))
            for i, entry in enumerate(found)
        )
        operands = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
        operands |= {f"y{i}": y for i, y in enumerate(made)}
        self.steps.append(Step(name, op, operands, given, (node_name(self.node),)))
        return made

    def view(self, x: Tensor, shape: Sequence[Expression]) -> Tensor:
        """The same elements in another shape, without a launch where they lie in a buffer."""
        shape = tuple(map(dims.canonical, shape))
        self._check_shape(shape)
        if dims.product(shape) != dims.product(x.shape):
            raise ValueError(f"expected as many elements in {shape} as in {tuple(x.shape)}")
        if shape == tuple(x.shape):
            return x
        if x.space != "buffer":
            whole = numbers(shape)
            assert whole is not None, "weights and constants have numbers for sizes"
            return self.context.tables.reshaped(x, whole)
        base = x.base or x.name
        return replace(x, name=self.context.unique(f"{base}.view"), shape=shape, base=base)

    def scalar(self, dtype: DType, value: float) -> str:
        """A number as an elementwise expression has it."""
        return number(dtype, value)

    def elementwise(self, expression: str, *inputs: Tensor) -> Tensor:
        return self.emit("elementwise", inputs, {"expression": expression})

    def give(self, result: Tensor, index: int = 0) -> None:
        """The tensor is this result of the node."""
        value = self.node.outputs[index]
        for place, step in enumerate(self.steps):
            for role, tensor in step.operands.items():
                if tensor is result and role[0] == "y" and value.name:
                    self.steps[place] = replace(step, values={**step.values, role: value.name})
        self.made[value] = result

    def refuse(self, why: str, code: ReasonCode = ReasonCode.NO_TEMPLATE) -> NotNative:
        """For a rule to raise."""
        return NotNative(code, f"{self.node.op_type}: {why}")

    def _check_shape(self, shape: Sequence[Expression]) -> None:
        """Raises ValueError for one that no buffer can have at every size."""
        if len(shape) > MAX_AXES:
            raise ValueError(f"expected at most {MAX_AXES} axes, found {len(shape)}")
        for axis in shape:
            if self.context.limits(axis)[0] < 0:
                raise ValueError(
                    f"expected sizes of 0 or more, found {spell(axis)}, which may be {self.context.limits(axis)[0]}"
                )

    def _input(self, index: int) -> ir.Value:
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise ValueError(f"expected operand {index}, found it left out")
        return value


Rule = Callable[[Lowering], None]
RULES: dict[tuple[str, str], Rule] = {}


def rule_of(node: ir.Node) -> Rule | None:
    return RULES.get((standard_domain(node), node.op_type))


def standard_domain(node: ir.Node) -> str:
    """Empty for ONNX's own, which has two names."""
    return "" if node.domain == "ai.onnx" else node.domain


def lowers(*operators: str, domain: str = "") -> Callable[[Rule], Rule]:
    """This rule lowers nodes of these operators."""

    def register(rule: Rule) -> Rule:
        for operator in operators:
            RULES[domain, operator] = rule
        return rule

    return register
