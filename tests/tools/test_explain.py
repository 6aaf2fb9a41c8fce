"""Does `hjgc explain` say why, down to what a person can change, and what it costs?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hjgc.plan_format import load, save
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, Note
from hjgc.tools.explaining.chains import ROOTS
from tests.compiler.exports import VARIANTS
from tests.plan_format.device_plan import device_plan, device_sections
from tests.plans import CONTEXT, HIDDEN, VOCABULARY, small_plan
from tests.runtime.gpu_plan import write_gpu_plan
from tests.tools.command_line import CommandLine, in_its_own_process, write_small_plan
from tests.tools.plans_to_compare import compiled_plan, replace, stripped, with_debug, with_reason, write

ROOT = Path(__file__).parents[2]


def shown(hjgc: CommandLine, *arguments: str | Path) -> dict[str, Any]:
    ran = hjgc("explain", *arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def spelt(chain: list[dict[str, str]]) -> list[str]:
    return [f"{link['kind']} {link['name']}" for link in chain]


@pytest.mark.parametrize("function", ["", "steer"])
@pytest.mark.parametrize("variant", [*VARIANTS, "stripped", "by hand", "gpu"])
def test_every_dynamic_launch_of_every_test_model_has_a_chain_that_ends_outside_of_the_plan(
    variant: str, function: str, hjgc: CommandLine, tmp_path: Path
) -> None:
    match variant:
        case "by hand":
            path = write_small_plan(tmp_path, function=function)
        case "gpu":
            path = write_gpu_plan(tmp_path)
        case "stripped":
            path = stripped(compiled_plan(tmp_path, function=function))
        case _:
            path = compiled_plan(tmp_path, variant, function=function)
    with load(path) as file:
        expected = [
            (phase.name, schedule.name, number)
            for phase in file.plan.phases
            for schedule in phase.schedules
            for segment in schedule.segments
            if isinstance(segment, DynamicSegment)
            for number in segment.launches
        ]
    entries = shown(hjgc, path)["dynamic"]
    causes = [(entry, cause) for entry in entries for cause in entry["causes"]]
    assert [(entry["phase"], entry["schedule"], cause["launch"]) for entry, cause in causes] == expected
    assert len(expected) >= (2 if not function or variant == "gpu" else 7)
    for _, cause in causes:
        first, *_, last = cause["chain"]
        assert (first["kind"], first["name"]) == ("launch", cause["name"])
        assert last["kind"] in ROOTS
        assert last["name"] and cause["change"]
    assert "unknown" not in hjgc("explain", path).out


def test_a_function_of_the_callers_is_led_back_from_the_launch_over_the_node_to_the_caller(
    hjgc: CommandLine, tmp_path: Path
) -> None:
    path = compiled_plan(tmp_path, function="steer")
    chain = ["launch layers.0.host_function", "onnx_node host/steer", "caller function 'steer'"]
    for plan in (path, stripped(path)):
        entry = next(e for e in shown(hjgc, plan)["dynamic"] if (e["phase"], e["schedule"]) == ("decode", "default"))
        (cause,) = entry["causes"]
        assert (spelt(cause["chain"]), cause["code"]) == (chain, "HOST_READ")
        assert "write the function 'steer' as ONNX operators in place of node host/steer" in cause["change"]
    text = hjgc("explain", path).out
    assert "launch 7 dynamic in default, logits_processor, prompt_only" in text
    assert "<- ONNX node host/steer\n          <- the caller's function 'steer'" in text


def test_the_logits_processor_is_led_back_over_the_logits_and_is_left_out_by_a_request_without_one(
    hjgc: CommandLine, tmp_path: Path
) -> None:
    (cause,) = shown(hjgc, compiled_plan(tmp_path))["dynamic"][0]["causes"]
    expected = ["launch caller_logits", "onnx_node lm_head/MatMul", "value logits", "caller logits_processor"]
    assert spelt(cause["chain"]) == expected
    assert cause["change"].startswith("send the request without a logits_processor")


ENDS = {
    ReasonCode.HOST_READ: ("caller", "reading of the result"),
    ReasonCode.DATA_DEPENDENT_SHAPE: ("model_input", "the values that mask is computed from"),
    ReasonCode.DATA_DEPENDENT_ADDRESS: ("model_input", "the values that mask is computed from"),
    ReasonCode.UNBOUNDED_SIZE: ("model_input", "the one with an axis mask"),
    ReasonCode.HOST_CONTROL_FLOW: ("attribute", "the branches or the body of mask"),
    ReasonCode.LIBRARY_NOT_CAPTURABLE: ("library", "the kernel templates of hjgc test for embedding on cpu"),
    ReasonCode.NO_TEMPLATE: ("library", "the kernel templates of hjgc test for embedding on cpu"),
    ReasonCode.HOST_TYPE: ("model_input", "the type of mask"),
    ReasonCode.RANDOM: ("attribute", "what mask draws"),
}


@pytest.mark.parametrize("code", list(ReasonCode))
def test_whatever_the_reason_the_chain_ends_and_a_change_is_named(
    code: ReasonCode, hjgc: CommandLine, tmp_path: Path
) -> None:
    plan = write(with_reason(small_plan(), code, "ONNX node gather", "mask"), tmp_path / "plan.hjg")
    entry = next(e for e in shown(hjgc, plan)["dynamic"] if e["phase"] == "decode")
    first = entry["causes"][0]
    middle = "size mask" if code is ReasonCode.UNBOUNDED_SIZE else "value mask"
    assert spelt(first["chain"]) == ["launch embed", "onnx_node gather", middle, " ".join(ENDS[code])]
    assert first["change"]


def test_a_launch_without_a_reason_of_its_own_is_led_back_to_the_one_that_has_one(
    hjgc: CommandLine, tmp_path: Path
) -> None:
    plan = write(with_reason(small_plan(), ReasonCode.HOST_CONTROL_FLOW, "ONNX node branch"), tmp_path / "plan.hjg")
    entry = next(e for e in shown(hjgc, plan)["dynamic"] if e["phase"] == "decode")
    assert len(entry["causes"]) == len(entry["launches"]) > 1
    assert f"and {len(entry['causes']) - 6} more launches: --json has why for each" in hjgc("explain", plan).out
    chain = spelt(entry["causes"][1]["chain"])
    assert chain == [
        "launch rotary",
        "launch embed",
        "onnx_node branch",
        "attribute the branches or the body of branch",
    ]


def test_a_host_call_costs_its_copies_and_no_predicted_time(hjgc: CommandLine, tmp_path: Path) -> None:
    cost = {e["phase"]: e["cost"] for e in shown(hjgc, write_gpu_plan(tmp_path))["dynamic"]}["decode"]
    logits, history, parameters = 4 * VOCABULARY, 4 * (CONTEXT + 1), 64
    assert (cost["to_host"], cost["to_device"]) == (logits + history + parameters, logits)
    assert (cost["flops"], cost["bytes"], cost["predicted_us"]) == (0, 0, None)


def test_a_prompt_costs_as_much_for_each_token_as_its_call_does_shared_out(hjgc: CommandLine, tmp_path: Path) -> None:
    plan = write_small_plan(tmp_path, function="steer")
    cost = next(e["cost"] for e in shown(hjgc, plan)["dynamic"] if e["schedule"] == "prompt_only")
    assert (cost["rows"], cost["to_host"], cost["to_device"]) == (16, 16 * 4 * HIDDEN, 16 * 4 * HIDDEN)
    assert cost["per_token"]["to_host"] == 4 * HIDDEN


def test_dynamic_launches_on_a_known_chip_have_a_predicted_time(hjgc: CommandLine, tmp_path: Path) -> None:
    path = write_gpu_plan(tmp_path, change=lambda plan: with_reason(plan, ReasonCode.HOST_CONTROL_FLOW, "branch"))
    data = shown(hjgc, path)
    assert (data["prediction"]["target"], data["prediction"]["chip"]) == ("sm_90", "H200")
    entry = next(e for e in data["dynamic"] if e["phase"] == "decode")
    assert entry["cost"]["predicted_us"] == pytest.approx(1.6 * len(entry["launches"]), rel=0.01)
    assert "operations on the device" in hjgc("explain", path).out


def test_lengths_without_a_graph_or_without_code_say_why_and_what_changes_it(hjgc: CommandLine, tmp_path: Path) -> None:
    entries = shown(hjgc, write_gpu_plan(tmp_path, ("sm_90",)))["lengths"]
    assert [(e["how"], e["low"], e["high"], e["target"]) for e in entries] == [
        ("parts", 17, CONTEXT, ""),
        ("not_built", 5, 16, "sm_90"),
    ]
    assert "such a prompt runs in parts of up to 4" in entries[1]["why"]
    short = shown(hjgc, compiled_plan(tmp_path / "short", prompt=(9, 16)))["lengths"][0]
    assert (short["how"], short["low"], short["high"]) == ("plain", 1, 5)
    assert "the smallest graph is for 12 tokens" in short["why"]
    assert "(compiled with --prompt 9:16)" in short["why"]
    assert short["change"] == "compile with --prompt 1:16"


def test_a_rewrite_that_almost_fired_says_what_stopped_it(hjgc: CommandLine, tmp_path: Path) -> None:
    notes = tuple(Note("FuseGate", f"model.layers.{i}.mlp/Mul", "the activation is Tanh") for i in range(2))
    path = with_debug(compiled_plan(tmp_path), lambda debug: replace(debug, notes=notes))
    assert [note["node"] for note in shown(hjgc, path)["almost_fired"]] == [note.node for note in notes]
    assert "FuseGate at model.layers.0.mlp/Mul and 1 more: the activation is Tanh" in hjgc("explain", path).out


def test_a_stripped_plan_says_what_is_missing_and_explains_by_the_names_of_launches(
    hjgc: CommandLine, tmp_path: Path
) -> None:
    path = stripped(compiled_plan(tmp_path))
    assert len(shown(hjgc, path)["missing"]) == 2
    text = hjgc("explain", path).out
    assert "missing, since the debug section was stripped: rewrites that almost fired" in text
    assert "rewrites that almost fired\n  none" not in text
    assert [found["name"] for found in shown(hjgc, path, "--node", "o_proj")["launches"][:1]] == ["layers.0.o_proj"]
    ran = hjgc("explain", path, "--node", "lm_head/MatMul")
    assert ran.code == 2
    assert "the plan has no debug section, so only names of launches are known" in ran.error


def test_a_node_is_shown_with_its_launches_verdicts_kernels_and_costs(hjgc: CommandLine, tmp_path: Path) -> None:
    data = shown(hjgc, compiled_plan(tmp_path), "--node", "model.layers.1/Add_1")
    assert [(found["phase"], found["name"], found["op"]) for found in data["launches"]] == [
        ("prefill", "layers.1.down_proj", "linear"),
        ("decode", "layers.1.down_proj", "linear"),
    ]
    decode = data["launches"][1]
    assert decode["matched"] == ["model.layers.1/Add_1"]
    assert {(s["schedule"], s["verdict"]) for s in decode["segments"]} == {
        ("default", "static"),
        ("logits_processor", "static"),
    }
    assert decode["kernels"] == {"cpu": [{"type": "reference"}]}
    assert decode["cost"]["flops"] == 2 * 64 * 160
    assert decode["causes"] == []


def test_kernels_of_one_variant_are_told_once_for_all_the_rows_that_they_serve(
    hjgc: CommandLine, tmp_path: Path
) -> None:
    path = write_gpu_plan(tmp_path)
    prefill = next(f for f in shown(hjgc, path, "--node", "0.o")["launches"] if f["phase"] == "prefill")
    assert [(call["rows"], call["built"]) for call in prefill["kernels"]["sm_90"]] == [
        (4, True),
        (8, False),
        (16, False),
    ]
    assert [call["rows"] for call in prefill["kernels"]["compute_80"]] == [None]
    assert "up to 8 rows: rows=8 (not built ahead)" in hjgc("explain", path, "--node", "0.o").out


def test_a_dynamic_node_says_why(hjgc: CommandLine, tmp_path: Path) -> None:
    found = shown(hjgc, compiled_plan(tmp_path, function="steer"), "--node", "host/steer")["launches"]
    assert [f["causes"][0]["code"] for f in found] == ["HOST_READ", "HOST_READ"]
    assert found[0]["kernels"]["cpu"] == [{"type": "host", "callback": "steer"}]


@pytest.mark.parametrize(
    ("name", "says"),
    [("lm_haed", "is it one of lm_head/MatMul"), ("", "found none called ''"), ("\x1b[2J", "\\x1b[2J")],
)
def test_a_node_that_became_nothing_is_one_line(name: str, says: str, hjgc: CommandLine, tmp_path: Path) -> None:
    ran = hjgc("explain", compiled_plan(tmp_path), "--node", name)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.error
    assert "\x1b" not in ran.err


def test_text_stays_within_100_columns_and_names_cannot_steer_the_terminal(hjgc: CommandLine, tmp_path: Path) -> None:
    hostile = "<script>" + "x" * 500
    path = write_small_plan(tmp_path, function="steer")
    (tmp_path / "odd\x1b\nname").mkdir()
    path = path.rename(tmp_path / "odd\x1b\nname" / "plan.hjg")
    with load(path) as file:
        plan = replace(file.plan, model=replace(file.plan.model, name=hostile))
    write(plan, path)
    for arguments in ((), ("--node", "e")):
        ran = hjgc("explain", path, *arguments)
        assert ran.code == 0
        assert max(map(len, ran.out.splitlines())) <= 100
        assert "\x1b" not in ran.out
        assert "odd\\x1b\\nname" in ran.out
        assert "<script>" in ran.out


def test_every_field_of_the_json_is_documented(hjgc: CommandLine, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "cli.md").read_text().partition("## hjgc explain")[2].partition("## hjgc diff")[0]
    path = write_gpu_plan(tmp_path)
    whole, node = shown(hjgc, path), shown(hjgc, path, "--node", "0.o")
    (launch, *_), entry = node["launches"], whole["dynamic"][0]
    tables = [whole, node, launch, entry, entry["causes"][0], entry["causes"][0]["chain"][0], entry["cost"]]
    tables += [launch["kernels"]["sm_90"][0], launch["segments"][0], whole["lengths"][0], whole["prediction"]]
    assert [name for table in tables for name in table if f"`{name}`" not in text] == []


def test_a_plan_of_no_language_model_is_explained_too(hjgc: CommandLine, tmp_path: Path) -> None:
    save(tmp_path / "plan.hjg", device_plan(), sections=device_sections())
    data = shown(hjgc, tmp_path / "plan.hjg")
    assert (data["dynamic"], data["lengths"], data["prediction"]["chip"]) == ([], [], "H200")
    assert "nothing is dynamic" in hjgc("explain", tmp_path / "plan.hjg").out
    assert len(shown(hjgc, tmp_path / "plan.hjg", "--node", "0")["launches"]) == 1


def test_it_needs_neither_torch_nor_onnx_nor_the_weights(plan: Path) -> None:
    (plan.parent / "weights.bin").unlink()
    program = f"""
import sys
from hjgc.tools import cli
code = cli.run(["explain", {str(plan)!r}]) or cli.run(["diff", {str(plan)!r}, {str(plan)!r}])
sys.exit(code or bool({{"torch", "onnx", "onnx_ir", "numpy"}} & set(sys.modules)))
"""
    process = in_its_own_process(sys.executable, "-c", program)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "the same plan" in out
