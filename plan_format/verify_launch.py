"""Is one launch legal: operands as its op declares them, attributes, and, as another file says, its kernels?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hjgc.plan_format.checker import Checker, brief
from hjgc.plan_format.dims import canonical
from hjgc.plan_format.expressions import Ranges
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import STATES, Infer, Op, Role, TensorType, bind_axes, split_roles
from hjgc.plan_format.sizes import Expression, Size, spell
from hjgc.plan_format.structs import Buffer, HostValue, Launch, Operand, Phase, Plan, State, Weight
from hjgc.plan_format.verify_kernel import Entry, KernelVerifier
from hjgc.plan_format.verify_tables import check_placement

FLOAT32_MAX = 3.4028234663852886e38
ROWS, VOCABULARY = "M", "V"
REFUSALS = (ValueError, IndexError, TypeError, OverflowError, RecursionError, ZeroDivisionError)
"""What an op may raise for operands that do not fit: but for the first a slip of its own, which a plan that somebody
broke must not turn into a traceback."""


class LaunchVerifier:
    """The checks of a phase's launches, with what all of them need at hand."""

    def __init__(self, plan: Plan, phase: Phase, keys: Ranges, check: Checker) -> None:
        self.plan, self.phase, self.keys, self.check = plan, phase, keys, check
        self.tables: Mapping[str, Sequence[Entry]] = {
            "weight": plan.weights,
            "constant": plan.constants,
            "state": plan.states,
            "buffer": phase.buffers,
            "value": phase.values,
        }
        dtypes = plan.dtypes
        self.dtypes: Mapping[str, str] = {
            "compute": dtypes.compute,
            "weights": dtypes.weights,
            "cache": dtypes.cache,
            "logits": dtypes.logits,
        }
        self.rows: Expression = Size("tokens") if "tokens" in keys else 1
        self.kernels = KernelVerifier(plan, self.tables, keys, check)

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
        self._attributes(op, launch, f"{where}.attributes")
        if op.infer is None:
            self._axes(op, launch, shapes, where)
        elif not op.island:
            self._types(op, op.infer, launch, f"{where}.operands")
        self._rings(launch, where)
        self.kernels.run(op, launch, f"{where}.kernels")
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
        if role.dtype == "any":
            return self._tensor(number, operand, role, place)
        if operand.space == "value" or (operand.space in ("weight", "constant")) != role.constant:
            wanted = "a weight or constant" if role.constant else "other memory"
            self.check.fail(f"{place}.space", f"expected {wanted}, found {operand.space!r}")
        entry = self._entry(number, operand, place)
        if isinstance(entry, Weight) and entry.placement != "device":
            self.check.fail(f"{place}.index", f"expected a weight on the device, found {entry.name!r}")
        kinds = STATES.get(role.name)
        if kinds is not None and not (isinstance(entry, State) and entry.kind in kinds):
            self.check.fail(f"{place}.index", f"expected a state of kind {' or '.join(kinds)}, found {entry.name!r}")
        wanted = self.dtypes.get(role.dtype, role.dtype)
        assert not isinstance(entry, HostValue), "refused above"
        if entry.dtype != wanted:
            self.check.fail(place, f"expected {wanted} for {role.name}, found {entry.dtype}")
        return entry.shape

    def _tensor(self, number: int, operand: Operand, role: Role, place: str) -> tuple[Expression, ...]:
        """Of a tensor op: what is written, or kept by the host, lies where that may be."""
        op = all_ops()[self.phase.launches[number].op]
        spaces = ("buffer",) if role.access == "write" else ("buffer", "weight", "constant")
        spaces = (*spaces, "value") if op.island else spaces
        if operand.space not in spaces:
            self.check.fail(f"{place}.space", f"expected {' or '.join(spaces)}, found {operand.space!r}")
        entry = self._entry(number, operand, place)
        if isinstance(entry, Weight) and entry.placement != "device" and not op.island:
            self.check.fail(f"{place}.index", f"expected a weight on the device, found {entry.name!r}")
        return () if isinstance(entry, HostValue) else entry.shape

    def _types(self, op: Op, infer: Infer, launch: Launch, place: str) -> None:
        """What a tensor op writes has the types that it says, from those that it reads."""
        found = {operand.role: self._type(operand) for operand in launch.operands}
        reads, writes = split_roles(tuple(found))
        outputs = [found[f"y{i}"] for i in range(writes) if f"y{i}" in found]
        if len(outputs) != writes or not outputs:
            self.check.fail(place, "expected results y0, y1, ... without a gap, found others")
        try:
            expected = infer([found.get(f"x{i}") for i in range(reads)], outputs, launch.attributes)
            fits = [_settled(want) == _settled(have) for want, have in zip(expected, outputs, strict=False)]
        except REFUSALS as error:
            self.check.fail(place, f"{op.name}: {error}")
        for i, (want, have) in enumerate(zip(expected, outputs, strict=False)):
            if not fits[i]:
                self.check.fail(place, f"expected y{i} as {want}, found {have}")
        self.check.require(len(expected) == len(outputs), place, f"{len(expected)} results", len(outputs))

    def _type(self, operand: Operand) -> TensorType:
        entry = self.tables[operand.space][operand.index]
        assert not isinstance(entry, HostValue), "only islands take those"
        return TensorType(entry.dtype, tuple(entry.shape))

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

    def _rings(self, launch: Launch, where: str) -> None:
        """Where positions go round in a cache, kernels must know, and what a call attends to must still be there when
        its own rows have been written."""
        most = self.keys["tokens"][1] if "tokens" in self.keys else 1
        for operand in launch.operands:
            entry = self.tables[operand.space][operand.index] if operand.space == "state" else None
            if not isinstance(entry, State) or entry.kind != "ring_cache":
                continue
            window = launch.attributes.get("window", 0)
            fits = type(window) is int and 0 < window <= entry.shape[1] - most
            told = launch.attributes.get("ring") is True and most <= entry.shape[1]
            wanted = f"for {entry.name!r} ring, or a window of 1 to {entry.shape[1] - most}"
            self.check.require(fits or told, f"{where}.attributes", wanted, dict(launch.attributes))

    def _attributes(self, op: Op, launch: Launch, place: str) -> None:
        found = launch.attributes
        self.check.require(found.keys() == op.attributes.keys(), place, f"{sorted(op.attributes)}", sorted(found))
        for name, kind in op.attributes.items():
            value = found[name]
            fine = type(value) is kind and (not isinstance(value, float) or abs(value) <= FLOAT32_MAX)
            self.check.require(fine, f"{place}.{name}", f"a {kind.__name__} that float32 holds", value)


def _settled(type: TensorType) -> TensorType:
    return TensorType(type.dtype, tuple(map(canonical, type.shape)))
