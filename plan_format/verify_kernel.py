"""Is the kernel that a launch names for a target legal: a variant built for it, its grid, its arguments?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

from hjgc.plan_format.checker import Checker
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.expressions import Ranges, check_expression
from hjgc.plan_format.ops.declaration import Op, is_function_name, split_roles
from hjgc.plan_format.structs import (
    Argument,
    AttributeArgument,
    Buffer,
    Constant,
    HostCall,
    HostValue,
    IslandCall,
    Kernel,
    Launch,
    LibraryCall,
    OperandArgument,
    ParameterArgument,
    Plan,
    ReferenceCall,
    RowsCall,
    State,
    TemplateCall,
    TensorMapArgument,
    Weight,
)

GRID_LIMITS = ((1 << 31) - 1, 65535, 65535)
MAX_RANGES = 256
MAX_MAP_AXES = 5
MAX_MAP_BOX = 256
MAP_ALIGNMENT = 16
"""Bytes that every stride of a tensor map, and its innermost box, is a multiple of."""

Entry = Weight | Constant | State | Buffer | HostValue


class KernelVerifier:
    """The checks of a launch's kernels. `tables` are those that operands point into, `keys` the ranges of key sizes."""

    def __init__(self, plan: Plan, tables: Mapping[str, Sequence[Entry]], keys: Ranges, check: Checker) -> None:
        self.plan, self.tables, self.keys, self.check = plan, tables, keys, check
        self.targets = set(plan.targets)
        self.fields = [field.name for field in plan.parameters.fields]
        self.legal: set[Hashable] = set()

    def run(self, op: Op, launch: Launch, place: str) -> None:
        found = launch.kernels
        if found.keys() != self.targets:
            self.check.fail(place, f"expected one for each of {sorted(self.targets)}, found {sorted(found)}")
        facts = self._facts(launch)
        for target, kernel in found.items():
            case = (target, kernel, facts)
            if case not in self.legal:  # layers are alike
                self._kernel(op, launch, target, kernel, f"{place}.{target}")
                self.legal.add(case)
        called = {kernel.callback for kernel in found.values() if isinstance(kernel, HostCall)}
        self.check.require(len(called) < 2, place, "the same function on every target", sorted(called))

    def _facts(self, launch: Launch) -> Hashable:
        """All of the launch that its kernels are judged by. Types count: 1 equals 1.0, and they are not the same to a
        kernel."""
        operands: list[Hashable] = []
        for operand in launch.operands:
            entry = self.tables[operand.space][operand.index] if operand.space in self.tables else None
            memory = None if entry is None or isinstance(entry, HostValue) else (entry.dtype, entry_bytes(entry))
            operands.append((operand.space, operand.access, memory))
        attributes = sorted((name, type(value).__name__, value) for name, value in launch.attributes.items())
        return launch.op, tuple(operands), tuple(attributes)

    def _kernel(self, op: Op, launch: Launch, target: str, kernel: Kernel, place: str) -> None:
        if op.host != isinstance(kernel, HostCall):
            self.check.fail(place, "expected a host call for an op of the host's, found another kind of kernel")
        if op.island != isinstance(kernel, IslandCall):
            self.check.fail(place, "expected an island for an op of one, found another kind of kernel")
        match kernel:
            case IslandCall():
                self._island_call(launch, kernel, f"{place}.island")
            case ReferenceCall():
                self.check.require(target == "cpu", place, "the reference on the cpu target only", target)
            case HostCall():
                self._host_call(op, kernel, f"{place}.callback")
            case TemplateCall():
                self._template_call(launch, target, kernel, place)
            case RowsCall():
                self._rows_call(launch, target, kernel, place)
            case LibraryCall():
                self.check.require(False, place, "a library this hjgc knows", kernel.library)

    def _island_call(self, launch: Launch, call: IslandCall, place: str) -> None:
        """As many operands as the sub-model has inputs and outputs."""
        self.check.index(call.island, self.plan.islands, place)
        island = self.plan.islands[call.island]
        counts = split_roles([operand.role for operand in launch.operands])
        wanted = (len(island.inputs), len(island.outputs))
        whole = sum(counts) == len(launch.operands)
        self.check.require(whole, place, "operands x0, x1, ... and y0, y1, ... without a gap", counts)
        self.check.require(counts == wanted, place, f"{wanted} operands and results", counts)

    def _host_call(self, op: Op, call: HostCall, place: str) -> None:
        if op.callback:
            self.check.require(call.callback == op.callback, place, repr(op.callback), call.callback)
        else:
            wanted = "the name of a function: up to 64 letters, digits and _"
            self.check.require(is_function_name(call.callback), place, wanted, call.callback)

    def _rows_call(self, launch: Launch, target: str, kernel: RowsCall, place: str) -> None:
        """Ranges rise to the most rows that a call may have."""
        self.check.count(kernel.ranges, MAX_RANGES, f"{place}.ranges")
        most = self.keys.get("tokens", (1, 1))[1]
        highs = [entry.high for entry in kernel.ranges]
        rising = bool(highs) and highs[0] >= 1 and all(a < b for a, b in pairwise(highs)) and highs[-1] == most
        self.check.require(rising, f"{place}.ranges", f"rising to {most}", highs)
        for i, entry in enumerate(kernel.ranges):
            self._template_call(launch, target, entry.call, f"{place}.ranges[{i}].call")

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
            case TensorMapArgument():
                self.check.require(kind == "tensor_map", place, kind, "a tensor map")
                self._tensor_map(launch, argument, place)
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

    def _tensor_map(self, launch: Launch, argument: TensorMapArgument, place: str) -> None:
        """What the driver would refuse, and whatever would read outside the operand."""
        self.check.index(argument.index, launch.operands, f"{place}.index")
        operand = launch.operands[argument.index]
        mapped = operand.space in self.tables and operand.access == "read"
        self.check.require(mapped, f"{place}.index", "an operand that is read and has a shape", operand.role)
        entry = self.tables[operand.space][operand.index]
        assert not isinstance(entry, HostValue), "only islands take those"
        axes, item = len(argument.sizes), ITEM_BYTES[entry.dtype]
        same = 1 <= axes <= MAX_MAP_AXES and len(argument.strides) == axes - 1 and len(argument.box) == axes
        self.check.require(same, f"{place}.sizes", f"1 to {MAX_MAP_AXES} axes, in strides and box too", argument.sizes)
        sane = all(0 < size < 1 << 32 for size in argument.sizes)
        self.check.require(sane, f"{place}.sizes", "sizes of 1 to 2^32", argument.sizes)
        aligned = all(0 < stride < 1 << 40 and stride % MAP_ALIGNMENT == 0 for stride in argument.strides)
        self.check.require(aligned, f"{place}.strides", f"multiples of {MAP_ALIGNMENT}", argument.strides)
        boxed = all(0 < side <= MAX_MAP_BOX for side in argument.box)
        inner = argument.box[0] * item
        fits = inner % MAP_ALIGNMENT == 0 and (argument.swizzle == 0 or inner <= argument.swizzle)
        self.check.require(boxed and fits, f"{place}.box", f"sides of 1 to {MAX_MAP_BOX} that fit", argument.box)
        strides = (item, *argument.strides)
        reach = item + sum((size - 1) * stride for size, stride in zip(argument.sizes, strides, strict=True))
        self.check.require(reach <= entry_bytes(entry), f"{place}.sizes", f"{entry_bytes(entry)} bytes at most", reach)


def entry_bytes(entry: Weight | Constant | State | Buffer) -> int:
    return entry.length if isinstance(entry, Constant) else entry.bytes


def _attribute_fits(kind: str, value: object) -> bool:
    if isinstance(value, float):
        return kind == "float32" and math.isfinite(value)
    limit = {"int32": 1 << 31, "int64": 1 << 63}.get(kind, 0)
    return isinstance(value, int) and -limit <= value < limit
