"""What does one call of a function cost, and what if it is a decoder in truth?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hjgc.plan_format.structs import Phase, Plan
from hjgc.tools.costs import call_sizes, launch_cost

CACHES = ("past", "cache", "kv")
"""What exporters call the inputs that hold keys and values."""


def call(plan: Plan) -> dict[str, Any] | None:
    """Of a function: the largest call there may be, and whether it takes token ids without a cache. None for a
    decoder."""
    phase = next((phase for phase in plan.phases if phase.entry == "function"), None)
    if phase is None:
        return None
    costs = [launch_cost(plan, phase, launch, tokens=1, start=0) for launch in phase.launches]
    return {
        "sizes": call_sizes(phase, 1, 0),
        "flops": sum(cost.flops for cost in costs),
        "bytes": sum(cost.bytes for cost in costs),
        "islands": len(plan.islands),
        "without_cache": _is_decoder(phase) and not _takes_cache(phase),
    }


def _is_decoder(phase: Phase) -> bool:
    """By the names that exporters give: token ids in, logits out."""
    ids = any(port.name.endswith("input_ids") for port in phase.arguments)
    return ids and any(port.name.endswith("logits") for port in phase.results)


def _takes_cache(phase: Phase) -> bool:
    return any(word in port.name.lower() for port in phase.arguments for word in CACHES)


def call_lines(shown: dict[str, Any], amounts: str) -> Iterator[str]:
    """`amounts`: its bytes and operations in words. What islands compute is not among the operations."""
    sizes = ", ".join(f"{name} = {value}" for name, value in shown["sizes"].items())
    at = f", the largest there may be ({sizes})" if sizes else ""
    count = shown["islands"]
    islands = f", and what {count} islands compute" if count > 1 else ", and what an island computes" if count else ""
    yield f"a call{at}: {amounts}{islands}"
    if shown["without_cache"]:
        yield (
            "it keeps no cache: each further token is a call over the whole sequence, so that an answer of n tokens "
            "costs n calls of growing length, where a decoder that hjgc recognises computes one row for each"
        )
