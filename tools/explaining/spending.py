"""What do some launches cost in one call of a phase: bytes, operations, time, and what crosses to the host and back?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Launch, Operand, Phase, Plan
from hjgc.tools.costs import call_sizes, launch_cost
from hjgc.tools.prediction import Chip, launch_seconds, prediction, representative


@dataclass(frozen=True)
class Spending:
    """Of one call of `rows` after `start` cached tokens. `bytes` and `flops` are the device's; `to_host` and
    `to_device` are copies, which only host calls make. `seconds`: None where a chip is not known, or where all the
    launches are host calls, whose time is the caller's."""

    rows: int
    start: int
    flops: int
    bytes: int
    to_host: int
    to_device: int
    seconds: float | None
    function: bool = False

    def as_data(self) -> dict[str, Any]:
        """The call, and the same for each of its rows."""
        whole = {
            "flops": self.flops,
            "bytes": self.bytes,
            "to_host": self.to_host,
            "to_device": self.to_device,
            "predicted_us": None if self.seconds is None else self.seconds * 1e6,
        }
        per_token = {name: None if amount is None else amount / self.rows for name, amount in whole.items()}
        call = {"rows": self.rows, "start": self.start, "function": self.function}
        return {**call, **whole, "per_token": per_token}


def spending(plan: Plan, phase: Phase, numbers: Iterable[int], chip: Chip | None) -> Spending:
    """For the rows and cached tokens that costs of this phase are given for."""
    rows, start = representative(phase)
    launches = [phase.launches[number] for number in numbers]
    on_device = [launch for launch in launches if not _is_on_host(plan, launch)]
    target = prediction(plan).target
    costs = [launch_cost(plan, phase, one, tokens=rows, start=start, target=target) for one in on_device]
    on_host = [launch for launch in launches if _is_on_host(plan, launch)]
    copies = [_copies(plan, phase, launch, rows, start) for launch in on_host]
    timed = sum(launch_seconds(cost, chip) for cost in costs) if chip is not None and costs else None
    return Spending(
        rows,
        start,
        sum(cost.flops for cost in costs),
        sum(cost.bytes for cost in costs),
        sum(to_host for to_host, _ in copies),
        sum(to_device for _, to_device in copies),
        timed,
        phase.entry == "function",
    )


def _is_on_host(plan: Plan, launch: Launch) -> bool:
    """A function of the caller's is; an island is where the rest runs on a GPU."""
    op = all_ops()[launch.op]
    return op.host or (op.island and any(target != "cpu" for target in plan.targets))


def _copies(plan: Plan, phase: Phase, launch: Launch, rows: int, start: int) -> tuple[int, int]:
    """Bytes to the host and back. Of the token history only what is filled crosses; caches and the like never do."""
    to_host = to_device = 0
    for operand in launch.operands:
        if operand.space in ("weight", "constant"):  # an island's own, on the host
            continue
        if operand.space == "parameters":
            to_host += plan.parameters.bytes
            continue
        size = 4 * (start + rows) if operand.role == "history" else _bytes(plan, phase, operand, rows)
        to_host += size if operand.access != "write" else 0
        to_device += size if operand.access != "read" else 0
    return to_host, to_device


def _bytes(plan: Plan, phase: Phase, operand: Operand, rows: int) -> int:
    if operand.space == "buffer":
        buffer = phase.buffers[operand.index]
        sizes = call_sizes(phase, rows, 0)
        return prod(evaluate(axis, sizes) for axis in buffer.shape) * ITEM_BYTES[buffer.dtype]
    if operand.space == "value":
        return 0
    tables = {"weight": plan.weights, "constant": plan.constants, "state": plan.states}
    entry = tables[operand.space][operand.index]
    return prod(entry.shape) * ITEM_BYTES[entry.dtype]
