"""Is a decoder with islands between its segments served as one, with the same tokens, whatever becomes of the whole?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hjgc.plan_format.structs import IslandCall, Launch, Phase, Plan
from hjgc.runtime import Session
from hjgc.runtime.runner import spell_segments
from tests.plans import small_plan
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import answer, captured

replace = msgspec.structs.replace
LENGTHS = (1, 2, 3, 5, 8, 9, 16, 30)
ROLES = {"x": "x0", "y": "y0"}


class Joining(FakeDevice):
    """A device whose graphs hold islands."""

    why = ""

    def graphless(self, phase: str, launch: int, *, padded: bool) -> str:
        return self.why


def island_plan() -> Plan:
    """With an island between the layers."""
    plan = small_plan(function="island")
    return replace(plan, phases=tuple(map(_phase, plan.phases)))


def _phase(phase: Phase) -> Phase:
    return replace(phase, launches=tuple(map(_launch, phase.launches)))


def _launch(launch: Launch) -> Launch:
    if launch.op != "host_function":
        return launch
    operands = tuple(replace(operand, role=ROLES[operand.role]) for operand in launch.operands)
    return replace(launch, op="island", operands=operands, kernels={"cpu": IslandCall(0)})


def island(plan: Plan) -> str:
    return next(launch.name for launch in plan.phase("decode").launches if launch.op == "island")


def served(**hooks: Any) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """The answers, and the report's entries of the schedules that ran."""
    device = Joining(island_plan())
    for name, hook in hooks.items():
        setattr(device, name, hook)
    found: list[list[int]] = []
    with Session(device.plan, device) as session:
        for _ in range(3):
            found += [answer(session, length, 5) for length in LENGTHS]
            captured(session)
        entries = session.report()["segments"]
    assert not device.living
    return found, [e for e in entries if e["schedule"] != "logits_processor"]


def hits(entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Where graphs served."""
    static = [e for e in entries if e["kind"] == "static" and e["hits"]]
    return {(e["phase"], spell_segments(e["segment"], e["last_segment"])) for e in static}


def test_segments_around_an_island_have_one_graph_and_the_same_tokens() -> None:
    apart, parts = served(why="the host computes it")
    joined, whole = served()
    assert joined == apart
    assert hits(parts) == {(phase, segment) for phase in ("prefill", "decode") for segment in ("0", "2")}
    assert hits(whole) == {("prefill", "0-2"), ("decode", "0-2")}
    assert all(entry["kind"] == "static" for entry in whole)


def test_parts_serve_where_the_whole_computes_something_else() -> None:
    apart, _ = served(why="the host computes it")
    joined, entries = served(corrupt={island(island_plan())})
    assert joined == apart
    assert hits(entries) == {(phase, segment) for phase in ("prefill", "decode") for segment in ("0", "2")}
    whole = [e for e in entries if e["kind"] == "static" and e["last_segment"] == 2 and e["segment"] == 0]
    assert {e["state"] for e in whole} == {"QUARANTINED", "COLD"}


@pytest.mark.parametrize(("bucket", "others"), [(8, {2, 4, 16}), (16, {2, 4, 8})])
def test_parts_serve_the_rows_alone_for_which_the_whole_has_no_graph(bucket: int, others: set[int]) -> None:
    apart, _ = served(why="the host computes it")
    joined, entries = served(refuse=lambda graph: "no" if graph == f"prefill@{bucket}[15]" else None)
    assert joined == apart
    prompts = [e for e in entries if (e["kind"], e["phase"], e["schedule"]) == ("static", "prefill", "default")]
    prefill = [e for e in prompts if e["hits"]]
    assert {e["key"] for e in prefill if e["segment"] == e["last_segment"]} == {bucket}
    assert {e["key"] for e in prefill if e["segment"] != e["last_segment"]} == others


def test_a_trace_names_all_segments_of_a_replay() -> None:
    device = Joining(island_plan())
    with Session(device.plan, device) as session:
        answer(session)
        captured(session)
        with session.trace() as trace:
            answer(session)
    said = [event["args"] for event in trace.as_data()["traceEvents"] if event["name"].endswith("replay")]
    assert {args["segment"] for args in said} == {"0-2"}


@pytest.mark.parametrize(("why", "ahead"), [("", True), ("the host computes it", False)])
def test_steps_are_launched_ahead_only_once_no_island_is_waited_for(why: str, ahead: bool) -> None:
    device = Joining(island_plan())
    device.why = why
    with Session(device.plan, device) as session:
        answer(session, 3, 5)
        plain = session.report()["launch_ahead"]
        captured(session)
        answer(session, 3, 5)
        after = session.report()["launch_ahead"]
    assert (plain["steps"], plain["off"].keys()) == (0, {"island"})
    assert (after["steps"] > 0, after["off"] == plain["off"]) == (ahead, ahead)
