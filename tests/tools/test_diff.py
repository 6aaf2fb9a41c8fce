"""Does `hjgc diff` say what differs, align launches by their origin, and fail a gate only where a rule says so?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hjgc.plan_format import Plan, save
from hjgc.plan_format.ledger import graph_costs
from hjgc.plan_format.structs import Variant
from hjgc.tools.differing.rules import AREAS
from tests.plan_format.device_plan import device_plan, device_sections
from tests.plans import small_plan
from tests.runtime.gpu_plan import gpu_plan, write_gpu_plan
from tests.tools.command_line import CommandLine, Ran, write_small_plan
from tests.tools.plans_to_compare import compiled_plan, replace, rewritten, stripped, write

ROOT = Path(__file__).parents[2]


def shown(hjgc: CommandLine, *arguments: str | Path, code: int = 1) -> dict[str, Any]:
    ran = hjgc("diff", *arguments, "--json")
    assert (ran.code, ran.err) == (code, "")
    data = json.loads(ran.out)
    assert {change["area"] for change in data["changes"]} <= set(AREAS)
    return data


def test_every_area_and_field_of_the_json_is_documented(hjgc: CommandLine, plan: Path) -> None:
    text = (ROOT / "docs" / "cli.md").read_text().partition("## hjgc diff")[2].partition("## hjgc bench")[0]
    other = rewritten(plan, lambda p: replace(p, model=replace(p.model, name="other")))
    data = shown(hjgc, plan, other, "--fail-on", "model")
    tables = [data, *(data[name][0] for name in ("causes", "changes", "aligned", "rules")), data["a"]]
    names = [*AREAS, *(name for table in tables for name in table)]
    assert [name for name in names if f"`{name}`" not in text] == []


def changes(data: dict[str, Any], area: str) -> list[tuple[Any, ...]]:
    return [(c["item"], c["field"], c["before"], c["after"]) for c in data["changes"] if c["area"] == area]


def write_device_plan(folder: Path) -> Path:
    """No language model, and kernels alone."""
    save(folder / "plan.hjg", device_plan(), sections=device_sections())
    return folder / "plan.hjg"


@pytest.mark.parametrize("kind", ["compiled", "by hand", "gpu", "no language model"])
def test_a_plan_and_itself_are_the_same(kind: str, hjgc: CommandLine, tmp_path: Path) -> None:
    make: dict[str, Callable[[Path], Path]] = {
        "compiled": compiled_plan,
        "by hand": write_small_plan,
        "gpu": write_gpu_plan,
        "no language model": write_device_plan,
    }
    path = make[kind](tmp_path)
    data = shown(hjgc, path, path, code=0)
    assert (data["same"], data["causes"], data["changes"], data["notes"][2:]) == (True, [], [], [])
    assert all(entry["only_a"] == entry["only_b"] == 0 < entry["pairs"] for entry in data["aligned"])
    assert hjgc("diff", path, path).out.endswith("the same plan\n")


def test_a_plan_and_its_stripped_copy_are_the_same(hjgc: CommandLine, tmp_path: Path) -> None:
    path = compiled_plan(tmp_path)
    data = shown(hjgc, path, stripped(path), code=0)
    assert [entry["by"] for entry in data["aligned"]] == ["names", "names"]
    assert data["notes"] == [
        f"{tmp_path / 'stripped.hjg'} has no debug section: its launches are aligned by their names"
    ]


@pytest.mark.parametrize("bare", [False, True])
def test_one_more_launch_in_the_middle_is_one_more_launch_and_shifts_nothing(
    bare: bool, hjgc: CommandLine, tmp_path: Path
) -> None:
    before, after = compiled_plan(tmp_path / "a"), compiled_plan(tmp_path / "b", function="steer")
    pair = (stripped(before), stripped(after)) if bare else (before, after)
    data = shown(hjgc, *pair)
    assert [(e["pairs"], e["only_a"], e["only_b"]) for e in data["aligned"]] == [(15, 0, 1), (15, 0, 1)]
    launches = changes(data, "launches")
    assert ("decode/layers.0.host_function", "launch", None, "host_function") in launches
    assert {item for item, *_ in launches if item.startswith("decode/")} == {
        f"decode/layers.{name}" for name in ("0.host_function", "1.attention_inputs", "1.o_proj")
    }  # the function itself, and the two that read its rows
    cut = "static | dynamic: layers.0.host_function (HOST_READ) | static"
    assert ("decode/default", "segments", "static", cut) in changes(data, "segments")


def test_a_weight_of_one_plan_alone_is_one_line_with_its_shape(hjgc: CommandLine, tmp_path: Path) -> None:
    data = shown(hjgc, compiled_plan(tmp_path / "a"), compiled_plan(tmp_path / "b", "bias"))
    biases = [change for change in changes(data, "weights") if "bias" in change[0]]
    assert [change[1:] for change in biases] == [("shape", None, "[128]")] * 2
    assert [cause["name"] for cause in data["causes"]] == ["model: architecture"]


def test_launches_that_another_exporter_named_are_aligned_by_their_nodes(hjgc: CommandLine, tmp_path: Path) -> None:
    def renamed(plan: Plan) -> Plan:
        phases = tuple(
            replace(phase, launches=tuple(replace(launch, name=f"n{launch.name}") for launch in phase.launches))
            for phase in plan.phases
        )
        return replace(plan, phases=phases)

    path = compiled_plan(tmp_path)
    data = shown(hjgc, path, rewritten(path, renamed))
    sampling = 2  # stand for no node, and have other names
    assert [(e["pairs"], e["only_a"]) for e in data["aligned"]] == [(15 - sampling, sampling)] * 2


def changed_axes(plan: Plan) -> Plan:
    variants = (*plan.variants[:-1], replace(plan.variants[-1], axes={"rows": 77}))
    return replace(plan, variants=variants)


def test_axes_that_differ_are_named_by_launch_and_target(hjgc: CommandLine, tmp_path: Path) -> None:
    path = write_gpu_plan(tmp_path)
    data = shown(hjgc, path, rewritten(path, changed_axes))
    field = "compute_80 kernel"
    before = gpu_plan(tmp_path).variants[-1].axes["rows"]
    assert ("decode/embed", field, f"rows={before}", "rows=77") in changes(data, "variants")
    assert [cause["kind"] for cause in data["causes"]] == ["kernel_axes"]
    lines = [line for line in hjgc("diff", path, tmp_path / "changed.hjg").out.splitlines() if field in line]
    assert len(lines) == 2 and " more, " in lines[1]  # once as the cause, once for all launches together


def test_code_that_was_built_otherwise_is_a_difference(hjgc: CommandLine, tmp_path: Path) -> None:
    def one_less_thread_group(plan: Plan) -> Plan:
        def variant(one: Variant) -> Variant:
            built = one.built
            return one if built is None else replace(one, built=msgspec.structs.replace(built, threads=64))

        return replace(plan, variants=tuple(map(variant, plan.variants)))

    path = write_gpu_plan(tmp_path)
    data = shown(hjgc, path, rewritten(path, one_less_thread_group))
    assert {change["area"] for change in data["changes"]} == {"code"}
    assert [cause["kind"] for cause in data["causes"]] == ["device_code"]


def test_no_difference_of_the_plan_goes_without_a_word(hjgc: CommandLine, tmp_path: Path) -> None:
    """A field that no table compares is still a difference."""

    def other_output(plan: Plan) -> Plan:
        prefill, *rest = plan.phases
        last = max(prefill.buffers, key=lambda buffer: buffer.last)
        return replace(plan, phases=(replace(prefill, outputs=(prefill.buffers.index(last),)), *rest))

    def outliving(plan: Plan) -> Plan:
        prefill, *rest = plan.phases
        last = len(prefill.launches) - 1
        buffers = (*prefill.buffers[:-1], replace(prefill.buffers[-1], last=last))
        return replace(plan, phases=(replace(prefill, buffers=buffers), *rest))

    path = rewritten(write_small_plan(tmp_path), outliving, "a.hjg")
    data = shown(hjgc, path, rewritten(path, other_output))
    assert [(c["area"], c["field"]) for c in data["changes"]] == [("other", "digest")]
    assert [cause["kind"] for cause in data["causes"]] == ["plan"]


def test_predicted_times_are_compared_by_token_and_prompt(hjgc: CommandLine, tmp_path: Path) -> None:
    def without_sampling(plan: Plan) -> Plan:
        decode = next(phase for phase in plan.phases if phase.name == "decode")
        (static,) = decode.schedules[0].segments
        kept = replace(static, launches=static.launches[:-1])
        schedule = replace(decode.schedules[0], segments=(kept,))
        phases = tuple(replace(p, schedules=(schedule, *p.schedules[1:])) if p is decode else p for p in plan.phases)
        return replace(plan, phases=phases, ledger=replace(plan.ledger, graph=graph_costs(phases)))

    path = write_gpu_plan(tmp_path)
    less = rewritten(path, without_sampling)
    data = shown(hjgc, path, less)
    (change,) = changes(data, "time")
    assert change[:2] == ("predicted", "ms for a token after 48 cached")
    assert change[2] - change[3] == pytest.approx(0.0016, rel=0.01)  # a launch less
    grown = hjgc("diff", less, path, "--fail-on", "time+3%,segments")
    assert grown.code == 1
    assert "time+3%: broken" in grown.out and "segments: kept" in grown.out
    assert hjgc("diff", path, less, "--fail-on", "time+3%").code == 0  # shrinking is no growth


def gate(hjgc: CommandLine, rules: str, folder: Path) -> Ran:
    before = write(small_plan(), folder / "a.hjg")
    after = write(small_plan(context=50), folder / "b.hjg")
    return hjgc("diff", before, after, "--fail-on", rules)


@pytest.mark.parametrize(
    ("rules", "broken"),
    [
        ("segments", []),
        ("segments,variants,launches", []),
        ("ledger+50%", []),
        ("ledger+1%", ["ledger+1%"]),
        ("ledger", ["ledger"]),
        ("sizes , ledger+50%, states", ["sizes", "states"]),
    ],
)
def test_a_gate_fails_only_where_a_rule_is_broken_and_names_each(
    rules: str, broken: list[str], hjgc: CommandLine, tmp_path: Path
) -> None:
    ran = gate(hjgc, rules, tmp_path)
    assert ran.code == (1 if broken else 0), ran.err
    assert [
        line.strip().removesuffix(": broken") for line in ran.out.splitlines() if line.endswith(": broken")
    ] == broken


def test_a_broken_rule_says_by_how_much(hjgc: CommandLine, tmp_path: Path) -> None:
    gate(hjgc, "ledger+1%", tmp_path)
    data = shown(hjgc, tmp_path / "a.hjg", tmp_path / "b.hjg", "--fail-on", "ledger+1%")
    (rule,) = data["rules"]
    before, after = small_plan().ledger.states, small_plan(context=50).ledger.states
    assert f"plan states: {before} -> {after} (+{100 * (after / before - 1):.1f} %)" in rule["broken"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("speed", "expected rules like segments,ledger+5%,time+3%, found 'speed'"),
        ("", "found ''"),
        ("segments+5%", "expected a percentage for ledger or time alone, found 'segments+5%'"),
        ("ledger-5%", "found 'ledger-5%'"),
        ("time+3%", "expected predicted times for the rule time+3%, found none"),
        ("time", "speeds are known of sm_90 (H200), the plan is for cpu"),
    ],
)
def test_a_rule_that_cannot_be_checked_is_an_error_and_not_a_pass(
    rules: str, says: str, hjgc: CommandLine, tmp_path: Path
) -> None:
    ran = gate(hjgc, rules, tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.error


@pytest.mark.parametrize("bad", ["none.hjg", "model.onnx"])
def test_what_is_no_plan_is_an_error(bad: str, hjgc: CommandLine, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x12\x04hjgc" + bytes(100))
    for pair in ((plan, tmp_path / bad), (tmp_path / bad, plan)):
        ran = hjgc("diff", *pair)
        assert (ran.code, ran.out) == (2, "")
        assert bad in ran.error


def test_text_stays_within_100_columns_and_names_cannot_steer_the_terminal(hjgc: CommandLine, tmp_path: Path) -> None:
    path = write_small_plan(tmp_path)
    (tmp_path / "odd\x1b\nname").mkdir()
    other = rewritten(path, lambda p: replace(p, model=replace(p.model, name="<b>" + "x" * 4000)))
    other = other.rename(tmp_path / "odd\x1b\nname" / "plan.hjg")
    ran = hjgc("diff", path, other, "--fail-on", "model")
    assert ran.code == 1
    assert max(map(len, ran.out.splitlines())) <= 100
    assert "\x1b" not in ran.out and "odd\\x1b\\nname" in ran.out and "<b>xxx" in ran.out
