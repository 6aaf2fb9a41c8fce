"""Is one phase legal: its sizes, buffers, launches, edges, and the way it is cut into segments?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hjgc.plan_format import sizes
from hjgc.plan_format.checker import Checker
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.hazards import MemoryUse, memory_uses, unordered_conflict
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import Op, Role, bind_axes
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import (
    AttributeArgument,
    DynamicSegment,
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
    StaticSegment,
    TemplateCall,
)

MAX_LAUNCHES = 1 << 20
GRID_LIMITS = ((1 << 31) - 1, 65535, 65535)
SCHEDULES = ("default", "logits_processor", "prompt_only")
SIZE_NAMES = ("tokens", "start", "length")

Ranges = Mapping[str, tuple[int, int]]


def verify_phase(plan: Plan, phase: Phase, where: str, check: Checker) -> None:
    """Check one phase. Raises PlanError."""
    check.require(0 < len(phase.launches) <= MAX_LAUNCHES, f"{where}.launches", f"1 to {MAX_LAUNCHES}", len(phase.launches))
    ranges = _check_sizes(phase, where, check)
    _check_buffers(plan, phase, ranges, where, check)
    check.unique_names((launch.name for launch in phase.launches), f"{where}.launches")
    for i, launch in enumerate(phase.launches):
        _LaunchCheck(plan, phase, i, launch, f"{where}.launches[{i}]", ranges, check).run()
    _check_edges(plan, phase, where, check)
    check.unique_names((schedule.name for schedule in phase.schedules), f"{where}.schedules")
    check.require(any(s.name == "default" for s in phase.schedules), f"{where}.schedules", "one called default", "none")
    for i in range(len(phase.schedules)):
        _check_schedule(phase, i, f"{where}.schedules[{i}]", ranges, check)


def _check_sizes(phase: Phase, where: str, check: Checker) -> Ranges:
    check.unique_names((size.name for size in phase.sizes), f"{where}.sizes")
    for i, size in enumerate(phase.sizes):
        place = f"{where}.sizes[{i}]"
        check.require(size.name in SIZE_NAMES, f"{place}.name", f"one of {SIZE_NAMES}", size.name)
        check.require(0 <= size.low <= size.high < 1 << 31, f"{place}.low", "0 <= low <= high", (size.low, size.high))
    return {size.name: (size.low, size.high) for size in phase.sizes}


def check_expression(expression: Expression, ranges: Ranges, where: str, check: Checker) -> tuple[int, int]:
    """The bounds of an expression that names declared sizes only, is not deep and never divides by zero."""
    check.require(sizes.depth(expression) <= sizes.MAX_DEPTH, where, f"depth {sizes.MAX_DEPTH}", "a deeper expression")
    unknown = sizes.names(expression) - ranges.keys()
    check.require(not unknown, where, f"sizes among {sorted(ranges)}", sorted(unknown))
    try:
        return sizes.bounds(expression, ranges)
    except ZeroDivisionError:
        check.fail(where, "expected a divisor over 0, found a range with 0")


def _check_buffers(plan: Plan, phase: Phase, ranges: Ranges, where: str, check: Checker) -> None:
    check.unique_names((buffer.name for buffer in phase.buffers), f"{where}.buffers")
    last = len(phase.launches) - 1
    for i, buffer in enumerate(phase.buffers):
        place = f"{where}.buffers[{i}]"
        check.require(len(buffer.shape) <= 8, f"{place}.shape", "up to 8 axes", len(buffer.shape))
        axes = [check_expression(axis, ranges, f"{place}.shape", check) for axis in buffer.shape]
        check.require(all(low >= 1 for low, _ in axes), f"{place}.shape", "axes of 1 or more", axes)
        need = math.prod(high for _, high in axes) * ITEM_BYTES[buffer.dtype]
        check.require(buffer.bytes >= need, f"{place}.bytes", f"at least {need}", buffer.bytes)
        end = plan.arena_bytes - buffer.bytes
        aligned = buffer.offset % 256 == 0 and 0 <= buffer.offset <= end
        check.require(aligned, f"{place}.offset", f"a multiple of 256 up to {end}", buffer.offset)
        alive = 0 <= buffer.first <= buffer.last <= last
        check.require(alive, f"{place}.first", f"a span of launches 0 to {last}", (buffer.first, buffer.last))
    _check_disjoint(phase, where, check)
    _check_ends(phase, where, check)


def _check_ends(phase: Phase, where: str, check: Checker) -> None:
    """What the caller fills must live from the first launch on, what it reads to the last."""
    last = len(phase.launches) - 1
    for name, indices in (("inputs", phase.inputs), ("outputs", phase.outputs)):
        check.require(len(set(indices)) == len(indices), f"{where}.{name}", "each buffer once", indices)
        for i, index in enumerate(indices):
            place = f"{where}.{name}[{i}]"
            check.index(index, phase.buffers, place)
            buffer = phase.buffers[index]
            alive = buffer.first == 0 if name == "inputs" else buffer.last == last
            check.require(alive, place, f"alive at launch {0 if name == 'inputs' else last}", buffer.name)
    given = bool(phase.inputs) == (phase.entry != "token")
    check.require(given, f"{where}.inputs", f"what entry {phase.entry!r} needs", phase.inputs)


def _check_disjoint(phase: Phase, where: str, check: Checker) -> None:
    """No two buffers that live at one launch share a byte: walk by first launch, compare with those still alive."""
    alive: list[int] = []
    for i in sorted(range(len(phase.buffers)), key=lambda i: phase.buffers[i].first):
        buffer = phase.buffers[i]
        alive = [j for j in alive if phase.buffers[j].last >= buffer.first]
        for j in alive:
            other = phase.buffers[j]
            apart = buffer.offset + buffer.bytes <= other.offset or other.offset + other.bytes <= buffer.offset
            check.require(apart, f"{where}.buffers[{i}]", f"no byte shared with {other.name!r}", buffer.name)
        alive.append(i)


class _LaunchCheck:
    """The checks of one launch, with what they need at hand."""

    def __init__(
        self, plan: Plan, phase: Phase, number: int, launch: Launch, where: str, ranges: Ranges, check: Checker
    ) -> None:
        self.plan, self.phase, self.number, self.launch = plan, phase, number, launch
        self.where, self.ranges, self.check = where, ranges, check

    def run(self) -> None:
        op = all_ops().get(self.launch.op)
        if op is None:
            self.check.fail(f"{self.where}.op", f"expected an op that hjgc knows, found {self.launch.op!r}")
        shapes: dict[str, tuple[Expression, ...]] = {}
        for i, operand in enumerate(self.launch.operands):
            place = f"{self.where}.operands[{i}]"
            role = op.role(operand.role)
            if role is None or operand.role in shapes:
                self.check.fail(f"{place}.role", f"expected a role of {op.name}, once, found {operand.role!r}")
            shapes[operand.role] = self._operand(operand, role, place)
        for role in op.roles:
            given = role.optional or role.name in shapes
            self.check.require(given, f"{self.where}.operands", f"an operand for {role.name!r}", sorted(shapes))
        self._axes(op, shapes)
        self._attributes(op)
        self._kernels(op)
        self.check.require(self.launch.device == 0 and self.launch.rank == 0, f"{self.where}.device", "0", self.launch.device)

    def _operand(self, operand: Operand, role: Role, place: str) -> tuple[Expression, ...]:
        self.check.require(operand.access == role.access, f"{place}.access", role.access, operand.access)
        if (operand.space == "parameters") != (role.dtype == "parameters"):
            self.check.fail(f"{place}.space", f"expected what {role.name} needs, found {operand.space!r}")
        if operand.space == "parameters":
            self.check.require(operand.index == 0, f"{place}.index", "0", operand.index)
            return ()
        fixed = operand.space in ("weight", "constant")
        self.check.require(
            fixed == role.constant, f"{place}.space", "a weight or constant" if role.constant else "other memory", operand.space
        )
        dtype, shape = self._resolve(operand, place)
        wanted = self._dtype(role)
        self.check.require(dtype == wanted, f"{place}", f"{wanted} for {role.name}", dtype)
        return shape

    def _resolve(self, operand: Operand, place: str) -> tuple[str, tuple[Expression, ...]]:
        plan = self.plan
        table = {"weight": plan.weights, "constant": plan.constants, "state": plan.states, "buffer": self.phase.buffers}[
            operand.space
        ]
        self.check.index(operand.index, table, f"{place}.index")
        entry = table[operand.index]
        if operand.space == "buffer":
            buffer = self.phase.buffers[operand.index]
            alive = buffer.first <= self.number <= buffer.last
            self.check.require(alive, f"{place}.index", f"a buffer alive at launch {self.number}", buffer.name)
        return entry.dtype, tuple(entry.shape)

    def _dtype(self, role: Role) -> str:
        dtypes = self.plan.dtypes
        by_role = {"compute": dtypes.compute, "weights": dtypes.weights, "cache": dtypes.cache, "logits": dtypes.logits}
        return by_role.get(role.dtype, role.dtype)

    def _axes(self, op: Op, shapes: Mapping[str, tuple[Expression, ...]]) -> None:
        try:
            bound = bind_axes(op, shapes)
        except ValueError as error:
            self.check.fail(f"{self.where}.operands", str(error))
        highest = {name: sizes.bounds(size, self.ranges)[1] for name, size in bound.items()}
        wrong = op.relations(highest, self.launch.attributes)
        if wrong is not None:
            self.check.fail(f"{self.where}.operands", wrong)

    def _attributes(self, op: Op) -> None:
        place = f"{self.where}.attributes"
        found = self.launch.attributes
        self.check.require(found.keys() == op.attributes.keys(), place, f"{sorted(op.attributes)}", sorted(found))
        for name, kind in op.attributes.items():
            value = found[name]
            fine = type(value) is kind and (not isinstance(value, float) or math.isfinite(value))
            self.check.require(fine, f"{place}.{name}", f"a finite {kind.__name__}", value)

    def _kernels(self, op: Op) -> None:
        found = self.launch.kernels
        place = f"{self.where}.kernels"
        self.check.require(set(found) == set(self.plan.targets), place, f"one for each of {self.plan.targets}", sorted(found))
        for target, kernel in found.items():
            self._kernel(op, target, kernel, f"{place}.{target}")

    def _kernel(self, op: Op, target: str, kernel: Kernel, place: str) -> None:
        self.check.require(op.host == isinstance(kernel, HostCall), place, "a host call where the op is one", kernel)
        if isinstance(kernel, ReferenceCall):
            self.check.require(target == "cpu", place, "the reference on the cpu target only", target)
        elif isinstance(kernel, TemplateCall):
            self._template_call(target, kernel, place)
        elif isinstance(kernel, LibraryCall):
            self.check.fail(place, f"expected a library this hjgc knows, found {kernel.library!r}")

    def _template_call(self, target: str, call: TemplateCall, place: str) -> None:
        keys = {size.name: self.ranges[size.name] for size in self.phase.sizes if size.lives == "key"}
        self.check.index(call.variant, self.plan.variants, f"{place}.variant")
        variant = self.plan.variants[call.variant]
        self.check.require(variant.target == target, f"{place}.variant", f"one built for {target}", variant.target)
        for axis, (size, limit) in enumerate(zip(call.grid, GRID_LIMITS, strict=True)):
            low, high = check_expression(size, keys, f"{place}.grid[{axis}]", self.check)
            self.check.require(1 <= low and high <= limit, f"{place}.grid[{axis}]", f"1 to {limit}", (low, high))
        kinds = [kind for kind in variant.parameters if kind != "scratch"]
        self.check.require(len(kinds) == len(call.arguments), f"{place}.arguments", f"{len(kinds)}", len(call.arguments))
        for i, (kind, argument) in enumerate(zip(kinds, call.arguments, strict=True)):
            self._argument(kind, argument, keys, f"{place}.arguments[{i}]")

    def _argument(self, kind: str, argument: object, keys: Ranges, place: str) -> None:
        if isinstance(argument, OperandArgument):
            self.check.require(kind == "pointer", place, kind, "an operand")
            self.check.index(argument.index, self.launch.operands, f"{place}.index")
        elif isinstance(argument, ParameterArgument):
            fields = [field.name for field in self.plan.parameters.fields]
            fits = kind == "pointer" and argument.name in fields
            self.check.require(fits, place, f"a {kind}, or one of {fields}", argument.name)
        elif isinstance(argument, AttributeArgument):
            value = self.launch.attributes.get(argument.name)
            fits = isinstance(value, float) if kind == "float32" else isinstance(value, int) and kind != "pointer"
            self.check.require(fits, place, f"an attribute of type {kind}", argument.name)
        else:
            low, high = check_expression(argument.value, keys, place, self.check)  # type: ignore[attr-defined]
            limit = 1 << (31 if kind == "int32" else 62)
            fits = kind in ("int32", "int64") and -limit <= low and high < limit
            self.check.require(fits, place, f"a value that fits {kind}", (low, high))


def _check_edges(plan: Plan, phase: Phase, where: str, check: Checker) -> None:
    count = len(phase.launches)
    seen: set[tuple[int, int]] = set()
    for i, edge in enumerate(phase.edges):
        ends = (edge.before, edge.after)
        forward = 0 <= edge.before < edge.after < count
        check.require(forward, f"{where}.edges[{i}]", f"before < after < {count}", ends)
        check.require(ends not in seen, f"{where}.edges[{i}]", "each edge once", ends)
        seen.add(ends)
        if edge.kind == "pdl":
            both = _overlaps_on(plan, phase.launches[edge.before]) & _overlaps_on(plan, phase.launches[edge.after])
            check.require(bool(both), f"{where}.edges[{i}].kind", "pdl between kernels built for it", "another")


def _overlaps_on(plan: Plan, launch: Launch) -> set[str]:
    """The targets for which the launch is a variant built for programmatic dependent launch."""
    calls = {target: kernel for target, kernel in launch.kernels.items() if isinstance(kernel, TemplateCall)}
    return {target for target, call in calls.items() if plan.variants[call.variant].pdl}


def _check_schedule(phase: Phase, number: int, where: str, ranges: Ranges, check: Checker) -> None:
    schedule = phase.schedules[number]
    check.require(schedule.name in SCHEDULES, f"{where}.name", f"one of {SCHEDULES}", schedule.name)
    check.require(len(schedule.segments) > 0, f"{where}.segments", "at least one", "none")
    order: list[int] = []
    for i, segment in enumerate(schedule.segments):
        place = f"{where}.segments[{i}]"
        check.require(len(segment.launches) > 0, f"{place}.launches", "at least one", "none")
        for launch in segment.launches:
            check.index(launch, phase.launches, f"{place}.launches")
        order += segment.launches
        if isinstance(segment, StaticSegment):
            _check_static(phase, segment, ranges, place, check)
        else:
            _check_dynamic(segment, place, check)
    rising = all(a < b for a, b in zip(order, order[1:], strict=False))
    check.require(rising, f"{where}.segments", "launches in rising order", order)
    conflict = unordered_conflict(phase, order)
    if conflict is not None:
        check.fail(f"{where}.segments", f"expected launch {conflict[0]} ordered before {conflict[1]}, found no path")
    _check_written_before_read(phase, order, where, check)


def _check_static(phase: Phase, segment: StaticSegment, ranges: Ranges, where: str, check: Checker) -> None:
    for launch in segment.launches:
        host = any(isinstance(kernel, HostCall) for kernel in phase.launches[launch].kernels.values())
        check.require(not host, f"{where}.launches", "no host call", phase.launches[launch].name)
    keys = tuple(size.name for size in phase.sizes if size.lives == "key")
    check.require(segment.key.sizes == keys, f"{where}.key.sizes", f"{keys}", segment.key.sizes)
    buckets = segment.key.buckets
    low, high = ranges[keys[0]] if keys else (1, 1)
    rising = all(a < b <= 2 * (a + 1) for a, b in zip(buckets, buckets[1:], strict=False))
    covers = bool(buckets) and buckets[-1] == high and low <= buckets[0]
    check.require(rising and covers, f"{where}.key.buckets", f"rising to {high}, none over half empty", buckets)


def _check_dynamic(segment: DynamicSegment, where: str, check: Checker) -> None:
    check.require(len(segment.reasons) > 0, f"{where}.reasons", "at least one", "none")
    for reason in segment.reasons:
        check.require(reason.launch in segment.launches, f"{where}.reasons", f"of {segment.launches}", reason.launch)
        check.require(0 < len(reason.chain) <= 64, f"{where}.reasons.chain", "1 to 64 steps", len(reason.chain))


def _check_written_before_read(phase: Phase, order: list[int], where: str, check: Checker) -> None:
    written: set[int] = set(phase.inputs)
    for number in order:
        uses: list[MemoryUse] = memory_uses(phase.launches[number])
        for use in uses:
            if use.space == "buffer" and use.reads:
                name = phase.buffers[use.index].name
                check.require(use.index in written, f"{where}.segments", f"{name!r} written before launch {number}", "not")
        written.update(use.index for use in uses if use.space == "buffer" and use.writes)
