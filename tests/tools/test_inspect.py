"""Does `hjgc inspect` show what is in the plan?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hjgc.tools.costs import launch_cost
from tests.plans import CONTEXT, HEAD_SIZE, HEADS, HIDDEN, INNER, KV_HEADS, VOCABULARY, small_plan
from tests.tools.command_line import CommandLine, in_its_own_process


def shown(hjgc: CommandLine, *arguments: str | Path) -> dict[str, Any]:
    ran = hjgc("inspect", *arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def test_json_tells_model_ledger_and_segments(hjgc: CommandLine, plan: Path) -> None:
    data, expected = shown(hjgc, plan), small_plan()
    assert data["file"]["bytes"] == plan.stat().st_size
    assert set(data["file"]["sections"]) == {"plan", "constants"}
    assert (data["model"]["name"], data["model"]["context"], data["model"]["bos_id"]) == ("small", CONTEXT, 1)
    assert data["ledger"]["total"] == expected.ledger.total
    assert [phase["name"] for phase in data["phases"]] == ["prefill", "decode"]
    default = data["phases"][1]["schedules"][0]["segments"]
    assert [segment["verdict"] for segment in default] == ["static"]
    assert default[0]["launches"] == list(expected.phases[1].schedules[0].segments[0].launches)


def test_a_dynamic_segment_says_why(hjgc: CommandLine, plan: Path) -> None:
    data = shown(hjgc, plan, "--phase", "decode")
    cut = next(s for s in data["phases"][0]["schedules"] if s["name"] == "logits_processor")
    (dynamic,) = (s for s in cut["segments"] if s["verdict"] == "dynamic")
    (reason,) = dynamic["reasons"]
    assert (reason["code"], reason["name"], reason["chain"]) == ("HOST_READ", "caller", ["caller", "logits"])
    text = hjgc("inspect", plan).out
    assert "HOST_READ: the host reads or writes its operands between two launches (caller <- logits)" in text


def test_fields_that_have_their_default_are_there_all_the_same(hjgc: CommandLine, plan: Path) -> None:
    assert shown(hjgc, plan)["model"]["tokenizer"] is None


def test_launches_are_shown_when_asked_for(hjgc: CommandLine, plan: Path) -> None:
    assert "launches" not in shown(hjgc, plan)["phases"][0]
    (decode,) = shown(hjgc, plan, "--phase", "decode", "--launches")["phases"]
    assert [launch["name"] for launch in decode["launches"]] == [x.name for x in small_plan().phase("decode").launches]
    linear = next(launch for launch in decode["launches"] if launch["name"] == "0.o")
    assert linear["kernels"] == {"cpu": {"type": "reference"}}
    assert {"role": "weight", "space": "weight", "name": "0.o", "access": "read"} in linear["operands"]
    lines = hjgc("inspect", plan, "--phase", "decode", "--launches").out.splitlines()
    assert any("0.attention_inputs" in line and ">key_cache=0.key_cache" in line for line in lines)


def test_costs_follow_the_ops_at_the_sizes_asked_for(hjgc: CommandLine, plan: Path) -> None:
    arguments = ("--phase", "prefill", "--launches", "--tokens", "4", "--start", "10")
    (prefill,) = shown(hjgc, plan, *arguments)["phases"]
    cost = {launch["name"]: (launch["flops"], launch["bytes"]) for launch in prefill["launches"]}
    gate_up = 2 * INNER
    assert cost["0.gate_up"] == (2 * 4 * gate_up * HIDDEN, 4 * (gate_up * HIDDEN + 4 * (HIDDEN + INNER)))
    read = KV_HEADS * HEAD_SIZE * (10 + 4)
    assert cost["0.attention"] == (4 * HEADS * HEAD_SIZE * 4 * 14, 2 * 4 * (4 * HEADS * HEAD_SIZE + read))


def test_every_launch_of_every_op_has_a_cost() -> None:
    plan = small_plan()
    for phase in plan.phases:
        for launch in phase.launches:
            cost = launch_cost(plan, phase, launch, tokens=1, start=0)
            assert cost.flops >= 0 < cost.bytes
    head = next(launch for launch in plan.phase("decode").launches if launch.name == "head")
    assert launch_cost(plan, plan.phase("decode"), head, tokens=1, start=0).flops == 2 * VOCABULARY * HIDDEN


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--phase", "training"), "--phase: expected one of prefill, decode, found 'training'"),
        (("--launches", "--tokens", "17"), "--tokens: expected 1 to 16 for phase prefill, found 17"),
        (("--launches", "--start", "49"), "--start: expected 0 to 48 for phase prefill, found 49"),
    ],
)
def test_what_the_plan_does_not_have_is_refused(
    arguments: tuple[str, ...], says: str, hjgc: CommandLine, plan: Path
) -> None:
    ran = hjgc("inspect", plan, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.error


def test_it_needs_neither_torch_nor_onnx_nor_the_weights(plan: Path) -> None:
    (plan.parent / "weights.bin").unlink()
    program = f"""
import sys
from hjgc.tools import cli
code = cli.run(["inspect", {str(plan)!r}, "--launches"])
sys.exit(code or bool({{"torch", "onnx", "onnx_ir", "numpy"}} & set(sys.modules)))
"""
    process = in_its_own_process(sys.executable, "-c", program)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "phase decode" in out
