"""Does the work of reading a plan grow with its size, not with the square of it?

No clock is read: a step that were quadratic here would take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from hjgc.plan_format import Plan, PlanError, decode, encode, load, save
from hjgc.plan_format.hazards import schedule_edges
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.structs import (
    Buffer,
    CaptureKey,
    Edge,
    Launch,
    Operand,
    ReferenceCall,
    Schedule,
    StaticSegment,
)
from hjgc.plan_format.verify import verify
from hjgc.plan_format.verify_schedule import MAX_UNCHAINED
from tests.plans import CONSTANTS, HIDDEN, small_plan

MANY = 30_000
replace = msgspec.structs.replace


def long_plan(launches: int, *, alive: bool = False, edges: Sequence[Edge] | None = None) -> Plan:
    """A decode phase of so many norms in a row; `alive`: every buffer lives throughout, else two places take turns."""
    plan = small_plan()
    norm = next(i for i, weight in enumerate(plan.weights) if weight.name == "norm")
    last = launches - 1
    buffers = tuple(
        Buffer(
            f"x{i}",
            "float32",
            (1, HIDDEN),
            256 * (i if alive else i % 2),
            4 * HIDDEN,
            0 if alive else max(0, i - 1),
            last if alive else min(i, last),
        )
        for i in range(launches + 1)
    )
    numbers = tuple(range(launches))
    phase = replace(
        plan.phase("decode"),
        entry="tensor",
        logits_rows="none",
        buffers=buffers,
        launches=tuple(_norm(i, norm) for i in numbers),
        edges=schedule_edges([numbers]) if edges is None else tuple(edges),
        schedules=(Schedule("default", (StaticSegment(numbers, CaptureKey((), (1,))),)),),
        inputs=(0,),
        outputs=(launches,),
    )
    arena = 256 * (launches + 1 if alive else 2)
    parts = (plan.weights, arena, plan.states, plan.constants, plan.parameters, (phase,))
    return replace(plan, arena_bytes=arena, phases=(phase,), ledger=make_ledger(*parts))


def _norm(number: int, weight: int) -> Launch:
    operands = (
        Operand("x", "buffer", number, "read"),
        Operand("weight", "weight", weight, "read"),
        Operand("y", "buffer", number + 1, "write"),
    )
    return Launch(f"norm{number}", "rms_norm", operands, {"cpu": ReferenceCall()}, {"epsilon": 1e-5})


def check(plan: Plan) -> None:
    verify(plan, {"constants": len(CONSTANTS)}, Path("p.hjg"))


@pytest.mark.parametrize("alive", [False, True])
def test_a_long_plan_loads(tmp_path: Path, alive: bool) -> None:
    plan = long_plan(MANY, alive=alive)
    save(tmp_path / "p.hjg", plan, sections={"constants": CONSTANTS})
    with load(tmp_path / "p.hjg") as file:
        assert file.plan == plan


def test_a_long_plan_whose_buffers_overlap_is_refused() -> None:
    plan = long_plan(MANY, alive=True)
    (phase,) = plan.phases
    moved = replace(phase.buffers[MANY // 2], offset=256 * (MANY - 7))
    buffers = (*phase.buffers[: MANY // 2], moved, *phase.buffers[MANY // 2 + 1 :])
    with pytest.raises(PlanError, match=r"buffers\[\d+\]: expected no byte shared"):
        check(replace(plan, phases=(replace(phase, buffers=buffers),)))


def test_a_long_plan_that_is_no_chain_is_refused_before_paths_are_looked_for() -> None:
    edges = [edge for edge in schedule_edges([range(MANY)]) if edge.before != MANY // 2]
    with pytest.raises(PlanError, match=rf"segments: expected an edge from each .*over {MAX_UNCHAINED}"):
        check(long_plan(MANY, edges=edges))


def test_a_plan_that_is_no_chain_is_searched_up_to_a_length() -> None:
    skipping = [Edge(i, i + 2) for i in range(MAX_UNCHAINED - 2)]
    with pytest.raises(PlanError, match=r"segments: expected launch 0 ordered before 1, found no path"):
        check(long_plan(MAX_UNCHAINED, edges=skipping))


def test_a_dynamic_segment_of_many_reasons_is_read_once() -> None:
    plan = small_plan()
    tree = msgspec.msgpack.decode(encode(plan))
    (phase,) = long_plan(MANY).phases
    tree["phases"] = [msgspec.to_builtins(phase)]
    launches = list(range(MANY))
    reasons = [{"launch": i, "code": "HOST_READ", "chain": ["x"]} for i in reversed(launches)]
    tree["phases"][0]["schedules"][0]["segments"] = [{"type": "dynamic", "launches": launches, "reasons": reasons}]
    made = msgspec.convert(tree, Plan, strict=False)
    parts = (made.weights, 512, made.states, made.constants, made.parameters, made.phases)
    made = replace(made, arena_bytes=512, ledger=make_ledger(*parts))
    check(made)
    assert decode(encode(made), Plan, Path("p.hjg")) == made
