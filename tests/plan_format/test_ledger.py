"""Does the ledger add up what the tables say?"""

from __future__ import annotations

import math

from hjgc.plan_format.ledger import GRAPH_BYTES_PER_LAUNCH, graph_costs
from tests.plan_format.device_plan import device_plan
from tests.plans import small_plan


def test_every_sum_is_that_of_its_table() -> None:
    plan = small_plan()
    ledger = plan.ledger
    assert ledger.weights == sum(4 * math.prod(weight.shape) for weight in plan.weights) == 7200
    assert ledger.states == sum(state.bytes for state in plan.states)
    assert ledger.arena == max(b.offset + b.bytes for phase in plan.phases for b in phase.buffers)
    assert ledger.total == ledger.weights + ledger.arena + ledger.states + ledger.constants + ledger.parameters


def test_a_token_costs_a_row_of_every_cache() -> None:
    plan = small_plan(layers=3)
    caches = [state for state in plan.states if state.kind == "full_cache"]
    assert len(caches) == 6
    assert plan.ledger.kv_per_token == sum(4 * heads * size for heads, _, size in (s.shape for s in caches))


def test_a_graph_costs_by_its_launches_and_the_host_costs_nothing() -> None:
    plan = small_plan()
    launches = len(plan.phase("decode").launches)
    costs = graph_costs(plan.phases)
    assert costs["decode/default"] == (launches - 1) * GRAPH_BYTES_PER_LAUNCH
    assert costs["decode/logits_processor"] == (launches - 1) * GRAPH_BYTES_PER_LAUNCH
    assert costs["prefill/prompt_only"] < costs["prefill/default"]
    assert graph_costs(device_plan().phases) == {"chain/default": 5 * GRAPH_BYTES_PER_LAUNCH}
