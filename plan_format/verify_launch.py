"""Is one launch legal: operands as its op declares them, attributes, and a kernel for every target?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hjgc.plan_format.checker import Checker, brief
from hjgc.plan_format.expressions import Ranges, check_expression
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import STATES, Op, Role, bind_axes
from hjgc.plan_format.sizes import Expression, Size, spell
from hjgc.plan_format.structs import (
    Argument,
    AttributeArgument,
    Buffer,
    Constant,
    HostCall,
    Kernel,
    Launch,
    LibraryCall,
    Operand,
    OperandArgument,
    ParameterArgument,
    Phase,
    Plan,
    ReferenceCall,
    State,
    TemplateCall,
    Weight,
)
from hjgc.plan_format.verify_tables import check_placement

GRID_LIMITS = ((1 << 31) - 1, 65535, 65535)
CALLBACKS = ("logits_processor",)
FLOAT32_MAX = 3.4028234663852886e38
ROWS, VOCABULARY = "M", "V"

Entry = Weight | Constant | State | Buffer


class LaunchVerifier:
    """The checks of a phase's launches, with what all of them need at hand."""

    def __init__(self, plan: Plan, phase: Phase, keys: Ranges, check: Checker) -> None:
        self.plan, self.keys, self.check = plan, keys, check
        self.tables: Mapping[str, Sequence[Entry]] = {
            "weight": plan.weights,
            "constant": plan.constants,
            "state": plan.states,
            "buffer": phase.buffers,
        }
        dtypes = plan.dtypes
        self.dtypes: Mapping[str, str] = {
            "compute": dtypes.compute,
            "weights": dtypes.weights,
            "cache": dtypes.cache,
            "logits": dtypes.logits,
        }
        self.rows: Expression = Size("tokens") if "tokens" in keys else 1
        self.targets = set(plan.targets)
        self.fields = [field.name for field in plan.parameters.fields]

    def run(self, number: int, launch: Launch, where: str) -> None:
        op = all_ops().get(launch.op)
        if op is None:
            self.check.fail(f"{where}.op", f"expected an op that hjgc knows, found {brief(launch.op)}")
        shapes: dict[str, tuple[Expression, ...]] = {}
        for i, operand in enumerate(launch.operands):
            role = op.role(operand.role)
            if role is None or operand.role in shapes:
                place = f"{where}.operands[{i}].role"
                self.check.fail(place, f"expected a role of {op.name}, once, found {brief(operand.role)}")
            shapes[operand.role] = self._operand(number, operand, role, f"{where}.operands[{i}]")
        missing = [role.name for role in op.roles if not role.optional and role.name not in shapes]
        if missing:
            self.check.fail(f"{where}.operands", f"expected an operand for {missing[0]!r}, found none")
        self._aliases(launch, where)
        self._axes(op, launch, shapes, where)
        self._attributes(op, launch, f"{where}.attributes")
        self._kernels(op, launch, f"{where}.kernels")
        check_placement(launch.placement, where, self.check)
        for name in ("device", "rank"):
            self.check.require(getattr(launch, name) == 0, f"{where}.{name}", "0", getattr(launch, name))

    def _operand(self, number: int, operand: Operand, role: Role, place: str) -> tuple[Expression, ...]:
        """Access, space and element type are the role's; the shape."""
        if operand.access != role.access:
            self.check.fail(f"{place}.access", f"expected {role.access}, found {operand.access}")
        if (operand.space == "parameters") != (role.dtype == "parameters"):
            self.check.fail(f"{place}.space", f"expected what {role.name} needs, found {operand.space!r}")
        if operand.space == "parameters":
            self.check.require(operand.index == 0, f"{place}.index", "0", operand.index)
            return ()
        if (operand.space in ("weight", "constant")) != role.constant:
            wanted = "a weight or constant" if role.constant else "other memory"
            self.check.fail(f"{place}.space", f"expected {wanted}, found {operand.space!r}")
        entry = self._entry(number, operand, place)
        kind = STATES.get(role.name)
        if kind is not None and not (isinstance(entry, State) and entry.kind == kind):
            self.check.fail(f"{place}.index", f"expected a state of kind {kind}, found {entry.name!r}")
        wanted = self.dtypes.get(role.dtype, role.dtype)
        if entry.dtype != wanted:
            self.check.fail(place, f"expected {wanted} for {role.name}, found {entry.dtype}")
        return entry.shape

    def _entry(self, number: int, operand: Operand, place: str) -> Entry:
        table = self.tables[operand.space]
        self.check.index(operand.index, table, f"{place}.index")
        entry = table[operand.index]
        if isinstance(entry, Buffer) and not entry.first <= number <= entry.last:
            self.check.fail(f"{place}.index", f"expected a buffer alive at launch {number}, found {entry.name!r}")
        return entry

    def _aliases(self, launch: Launch, where: str) -> None:
        """What a launch writes, none of its other operands names: kernels read and write in no order."""
        met: dict[tuple[str, int], bool] = {}
        for i, operand in enumerate(launch.operands):
            place, writes = (operand.space, operand.index), operand.access != "read"
            if place in met and (writes or met[place]):
                self.check.fail(f"{where}.operands[{i}]", "expected memory of its own, found another operand's")
            met[place] = writes

    def _axes(self, op: Op, launch: Launch, shapes: Mapping[str, tuple[Expression, ...]], where: str) -> None:
        """Operands agree on every letter. The rows are `tokens` (or 1 in a phase without); all else is a number."""
        place = f"{where}.operands"
        try:
            bound = bind_axes(op, shapes)
        except ValueError as error:
            self.check.fail(place, str(error))
        dims: dict[str, int] = {}
        for letter, size in bound.items():
            if letter == ROWS and size != self.rows:
                self.check.fail(place, f"expected axis M = {spell(self.rows)}, found {spell(size)}")
            if letter != ROWS and not isinstance(size, int):
                self.check.fail(place, f"expected a number for axis {letter}, found {spell(size)}")
            dims[letter] = size if isinstance(size, int) else self.keys["tokens"][1]
        vocabulary = self.plan.model.vocab_size
        if dims.get(VOCABULARY, vocabulary) != vocabulary:
            self.check.fail(place, f"expected axis V = {vocabulary}, the vocabulary, found {dims[VOCABULARY]}")
        wrong = op.relations(dims, launch.attributes)
        if wrong is not None:
            self.check.fail(place, wrong)

    def _attributes(self, op: Op, launch: Launch, place: str) -> None:
        found = launch.attributes
        self.check.require(found.keys() == op.attributes.keys(), place, f"{sorted(op.attributes)}", sorted(found))
        for name, kind in op.attributes.items():
            value = found[name]
            fine = type(value) is kind and (not isinstance(value, float) or abs(value) <= FLOAT32_MAX)
            self.check.require(fine, f"{place}.{name}", f"a {kind.__name__} that float32 holds", value)

    def _kernels(self, op: Op, launch: Launch, place: str) -> None:
        found = launch.kernels
        if found.keys() != self.targets:
            self.check.fail(place, f"expected one for each of {sorted(self.targets)}, found {sorted(found)}")
        for target, kernel in found.items():
            self._kernel(op, launch, target, kernel, f"{place}.{target}")

    def _kernel(self, op: Op, launch: Launch, target: str, kernel: Kernel, place: str) -> None:
        if op.host != isinstance(kernel, HostCall):
            self.check.fail(place, "expected a host call for an op of the host's, found another kind of kernel")
        match kernel:
            case ReferenceCall():
                self.check.require(target == "cpu", place, "the reference on the cpu target only", target)
            case HostCall():
                self.check.require(kernel.callback in CALLBACKS, place, f"one of {CALLBACKS}", kernel.callback)
            case TemplateCall():
                self._template_call(launch, target, kernel, place)
            case LibraryCall():
                self.check.require(False, place, "a library this hjgc knows", kernel.library)

    def _template_call(self, launch: Launch, target: str, call: TemplateCall, place: str) -> None:
        self.check.index(call.variant, self.plan.variants, f"{place}.variant")
        variant = self.plan.variants[call.variant]
        self.check.require(variant.target == target, f"{place}.variant", f"one built for {target}", variant.target)
        for axis, (size, limit) in enumerate(zip(call.grid, GRID_LIMITS, strict=True)):
            low, high = check_expression(size, self.keys, f"{place}.grid[{axis}]", self.check)
            self.check.require(1 <= low <= high <= limit, f"{place}.grid[{axis}]", f"1 to {limit}", (low, high))
        kinds = [kind for kind in variant.parameters if kind != "scratch"]
        counts = (len(kinds), len(call.arguments))
        self.check.require(counts[0] == counts[1], f"{place}.arguments", f"{counts[0]}", counts[1])
        for i, (kind, argument) in enumerate(zip(kinds, call.arguments, strict=True)):
            self._argument(launch, kind, argument, f"{place}.arguments[{i}]")

    def _argument(self, launch: Launch, kind: str, argument: Argument, place: str) -> None:
        match argument:
            case OperandArgument():
                self.check.require(kind == "pointer", place, kind, "an operand")
                self.check.index(argument.index, launch.operands, f"{place}.index")
            case ParameterArgument():
                fits = kind == "pointer" and argument.name in self.fields
                self.check.require(fits, place, f"a {kind}, or one of {self.fields}", argument.name)
            case AttributeArgument():
                fits = _attribute_fits(kind, launch.attributes.get(argument.name))
                self.check.require(fits, place, f"an attribute of type {kind}", argument.name)
            case _:
                low, high = check_expression(argument.value, self.keys, place, self.check)
                fits = kind == "int64" or (kind == "int32" and -(1 << 31) <= low <= high < 1 << 31)
                self.check.require(fits, place, f"a value that fits {kind}", (low, high))


def _attribute_fits(kind: str, value: object) -> bool:
    if isinstance(value, float):
        return kind == "float32" and math.isfinite(value)
    limit = {"int32": 1 << 31, "int64": 1 << 63}.get(kind, 0)
    return isinstance(value, int) and -limit <= value < limit
