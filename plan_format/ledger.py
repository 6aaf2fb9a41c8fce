"""What does a plan cost in bytes, and for what?"""

from __future__ import annotations

from collections.abc import Sequence

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.structs import Constant, Ledger, ParameterBlock, Phase, State, StaticSegment, Weight

GRAPH_BYTES_PER_LAUNCH = 4096
"""Device memory of an instantiated CUDA graph per kernel node. Measured on an H200: 2.2 KB with 30 graphs of 64 nodes,
at most 3.1 KB with 16 graphs of 228. (One graph alone took 2.2 MB: the driver takes memory in blocks, which graphs
share.)"""

CACHE_KINDS = ("full_cache", "ring_cache")


def make_ledger(
    weights: Sequence[Weight],
    arena_bytes: int,
    states: Sequence[State],
    constants: Sequence[Constant],
    parameters: ParameterBlock,
    phases: Sequence[Phase],
) -> Ledger:
    """Add up the tables. `total` is what a session allocates before it captures anything."""
    parts = {
        "weights": sum(weight.bytes for weight in weights),
        "arena": arena_bytes,
        "states": sum(state.bytes for state in states),
        "constants": sum(constant.length for constant in constants),
        "parameters": parameters.bytes,
    }
    return Ledger(
        **parts,
        kv_per_token=sum(_bytes_per_token(state) for state in states),
        graph=graph_costs(phases),
        total=sum(parts.values()),
    )


def graph_costs(phases: Sequence[Phase]) -> dict[str, int]:
    """Bytes of one captured graph of every static segment, by `phase/schedule`."""
    costs: dict[str, int] = {}
    for phase in phases:
        for schedule in phase.schedules:
            launches = sum(len(s.launches) for s in schedule.segments if isinstance(s, StaticSegment))
            costs[f"{phase.name}/{schedule.name}"] = launches * GRAPH_BYTES_PER_LAUNCH
    return costs


def _bytes_per_token(state: State) -> int:
    if state.kind not in CACHE_KINDS or len(state.shape) != 3:
        return 0
    heads, _, size = state.shape
    return heads * size * ITEM_BYTES[state.dtype]
