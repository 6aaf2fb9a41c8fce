"""What does one launch cost, in operations and in bytes of device memory, at given sizes?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import Op, bind_axes
from hjgc.plan_format.sizes import Expression, evaluate
from hjgc.plan_format.structs import Launch, Operand, Phase, Plan, call_for


@dataclass(frozen=True)
class Cost:
    """`flops` counts a multiply and an add as two; `bytes` each byte read and written once."""

    flops: int
    bytes: int


def launch_cost(plan: Plan, phase: Phase, launch: Launch, *, tokens: int, start: int, target: str = "") -> Cost:
    """The cost of one launch for `tokens` rows after `start` cached ones, as its op declares it; of a sum in parts, as
    many as the kernel for so many rows makes on the target, by default the plan's first."""
    op = all_ops()[launch.op]
    sizes = call_sizes(phase, tokens, start)
    if op.infer is not None:
        return _tensor_cost(plan, phase, launch, op, sizes)
    tensors = {
        operand.role: _tensor(plan, phase, operand) for operand in launch.operands if operand.space != "parameters"
    }
    letters = bind_axes(op, {role: shape for role, (_, shape) in tensors.items()})
    dims = {letter: evaluate(size, sizes) for letter, size in letters.items()} | {"start": start}
    if "parts" in tensors:
        dims["S"] = _parts_made(plan, launch, tokens, target or plan.targets[0]) or dims["S"]
    # One width serves the whole formula: that of the largest operand, which is what the bytes are made of.
    largest = max(tensors.values(), key=lambda tensor: prod(evaluate(axis, sizes) for axis in tensor[1]))
    return Cost(op.flops(dims), op.bytes_moved(dims, ITEM_BYTES[largest[0]]))


def call_sizes(phase: Phase, tokens: int, start: int) -> dict[str, int]:
    """The sizes of a call of so many rows; of a function, which has others, the largest there may be."""
    if phase.entry == "function":
        return {size.name: size.high for size in phase.sizes}
    return {"tokens": tokens, "length": tokens, "start": start}


def _tensor_cost(plan: Plan, phase: Phase, launch: Launch, op: Op, sizes: Mapping[str, int]) -> Cost:
    """Bytes of all operands that lie in memory; an operation for each element written, unless the op says more."""
    placed = [operand for operand in launch.operands if operand.space != "value"]
    shapes = {o.role: tuple(evaluate(axis, sizes) for axis in _tensor(plan, phase, o)[1]) for o in placed}
    moved = sum(prod(shapes[o.role]) * ITEM_BYTES[_tensor(plan, phase, o)[0]] for o in placed)
    if op.island:
        return Cost(0, moved)
    inputs, outputs = ([shapes[role] for role in sorted(shapes) if role[0] == side] for side in "xy")
    if op.operations is None:
        return Cost(sum(map(prod, outputs)), moved)
    return Cost(op.operations(inputs, outputs, launch.attributes), moved)


def _parts_made(plan: Plan, launch: Launch, rows: int, target: str) -> int | None:
    """As the kernel's axes say: the buffer has room for the most that any kernel makes."""
    call = call_for(launch.kernels[target], rows)
    splits = None if call is None else plan.variants[call.variant].axes.get("splits")
    return None if splits is None else int(splits)


def _tensor(plan: Plan, phase: Phase, operand: Operand) -> tuple[str, tuple[Expression, ...]]:
    match operand.space:
        case "buffer":
            entry = phase.buffers[operand.index]
        case "weight":
            entry = plan.weights[operand.index]
        case "constant":
            entry = plan.constants[operand.index]
        case _:
            entry = plan.states[operand.index]
    return entry.dtype, tuple(entry.shape)
