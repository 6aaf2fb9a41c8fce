"""How fast could this plan be at best on a device with these limits?

A step must read every weight it uses once, and, to decode, the keys and values of what is cached. A prompt must also
multiply: its floor is the longer of reading and multiplying. Activations, attention's own products, launches and the
host count as nothing, so no plan reaches its floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.structs import Launch, Phase, Plan
from hjgc.tools.costs import launch_cost

EMBEDDING = "embedding"
"""The one op that reads single rows of its weight."""


@dataclass(frozen=True)
class Limits:
    """What a device was measured to do: bytes read, bytes copied (read and written) and bytes taken from page-locked
    host memory per second, bf16 operations per second. None: not measured, `notes` say why."""

    read: float
    copy: float
    link: float
    matrix: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """`weight_bytes` read and `flops` of products with weights (a multiply and an add are two)."""

    weight_bytes: int
    flops: int


def work(plan: Plan, phase_name: str, tokens: int) -> Work:
    """What one step of so many rows must do, by the declarations of the ops in its schedule `default`."""
    phase = plan.phase(phase_name)
    weights: set[int] = set()
    rows = 0
    flops: dict[int, int] = {}
    for launch in _launches(phase):
        read = [operand.index for operand in launch.operands if operand.space == "weight"]
        if launch.op == EMBEDDING:
            rows += sum(_row_bytes(plan, index) for index in read) * tokens
        elif read:
            weights.update(read)
            largest = max(read, key=lambda index: plan.weights[index].bytes)
            if len(plan.weights[largest].shape) > 1:
                cost = launch_cost(plan, phase, launch, tokens=tokens, start=0)
                flops[largest] = max(cost.flops, flops.get(largest, 0))  # two ways to use one weight: one of them runs
    return Work(rows + sum(plan.weights[index].bytes for index in weights), sum(flops.values()))


def prompt_floor(plan: Plan, limits: Limits, tokens: int) -> float:
    """Seconds to the first token, at least."""
    needed = work(plan, "prefill", tokens)
    multiplying = 0.0 if limits.matrix is None else needed.flops / limits.matrix
    return max(needed.weight_bytes / limits.read, multiplying)


def decode_floor(plan: Plan, limits: Limits, context: float) -> float:
    """Seconds a token, at least, while so many tokens are cached."""
    return (work(plan, "decode", 1).weight_bytes + plan.ledger.kv_per_token * context) / limits.read


def cached(context: int, decode: int) -> float:
    """How many rows lie in the cache on average, while `decode` tokens follow a prompt of `context`."""
    return context + (decode - 1) / 2


def _launches(phase: Phase) -> list[Launch]:
    return [phase.launches[number] for segment in phase.schedule().segments for number in segment.launches]


def _row_bytes(plan: Plan, index: int) -> int:
    weight = plan.weights[index]
    return weight.shape[-1] * ITEM_BYTES[weight.dtype]
