"""Is a plan, seen as an ONNX model, whole, valid, and plain about what is dynamic and what costs what?"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from hjgc.plan_format import load
from hjgc.plan_format.structs import DynamicSegment, Phase, Plan, Schedule, State
from hjgc.tools.onnx_view import OPS, SEGMENTS, onnx_view
from tests.tools.command_line import CommandLine, write_small_plan
from tests.tools.plans_to_compare import PLAN_KINDS, compiled_plan, plan_of_kind, replace, stripped, write


def seen(path: Path) -> onnx.ModelProto:
    with load(path) as file:
        return onnx_view(file)


def default(phase: Phase) -> Schedule:
    return next(schedule for schedule in phase.schedules if schedule.name == "default")


def about(entry: onnx.NodeProto | onnx.FunctionProto | onnx.ModelProto) -> dict[str, str]:
    return {prop.key: prop.value for prop in entry.metadata_props}


@pytest.mark.parametrize("kind", PLAN_KINDS)
def test_every_launch_of_the_default_schedules_is_a_node_of_its_segments_function(kind: str, tmp_path: Path) -> None:
    path = plan_of_kind(kind, tmp_path)
    model = seen(path)
    onnx.checker.check_model(model)
    with load(path) as file:
        plan = file.plan
    expected = [
        [phase.launches[number].name for number in segment.launches]
        for phase in plan.phases
        for segment in default(phase).segments
    ]
    assert [[node.name for node in function.node] for function in model.functions] == expected
    assert [node.op_type for node in model.graph.node] == [function.name for function in model.functions]
    assert {node.domain for node in model.graph.node} == {SEGMENTS}
    assert {node.domain for function in model.functions for node in function.node} == {OPS}
    weights = {weight.name for weight in plan.weights}
    assert not any(weight in value for value in values(model) for weight in weights)


def values(model: onnx.ModelProto) -> set[str]:
    return {name for function in model.functions for node in function.node for name in (*node.input, *node.output)}


def test_a_dynamic_segment_says_why_and_the_others_for_how_many_rows_they_have_graphs(tmp_path: Path) -> None:
    path = compiled_plan(tmp_path, function="steer")
    model = seen(path)
    with load(path) as file:
        verdicts = [isinstance(s, DynamicSegment) for phase in file.plan.phases for s in default(phase).segments]
    assert [about(f)["verdict"] == "dynamic" for f in model.functions] == verdicts and any(verdicts)
    for function in model.functions:
        if about(function)["verdict"] == "dynamic":
            assert "<- ONNX node host/steer <- the caller's function 'steer'" in about(function)["why"]
            (node,) = function.node
            (why,) = (a for a in node.attribute if a.name == "why")
            assert why.strings[0].decode() in about(function)["why"]
            assert int(about(function)["bytes to the host"]) > 0
        else:
            assert "graphs" in about(function) and "why" not in about(function)
    assert all(about(node) == about(f) for node, f in zip(model.graph.node, model.functions, strict=True))


def test_a_launch_names_its_weights_caches_kernels_onnx_nodes_and_costs(tmp_path: Path) -> None:
    model = seen(compiled_plan(tmp_path))
    node = next(n for f in model.functions if f.name.startswith("decode") for n in f.node if n.op_type == "attention")
    said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert any(text.startswith(b"key_cache: ") for text in said["states"]) and said["onnx_nodes"]
    assert said["kernels"] == [b"cpu: reference"]
    linear = next(n for n in model.functions[0].node if n.op_type == "attention_inputs")
    said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in linear.attribute}
    assert any(text.startswith(b"weight: ") for text in said["weights"])
    assert any(text.endswith(b", written") for text in said["states"])
    assert int(about(node)["flops"]) > 0 and "cached tokens" in about(node)["costs are for"]
    assert "speeds are known of" in about(model)["times are predicted for"]


def test_what_a_launch_writes_again_is_another_value(tmp_path: Path) -> None:
    model = seen(write_small_plan(tmp_path))
    for function in model.functions:
        written = [name for node in function.node for name in node.output]
        assert len(written) == len(set(written))


def test_a_buffer_that_is_called_like_a_state_is_told_apart_and_markup_in_a_name_stays_text(tmp_path: Path) -> None:
    path = write_small_plan(tmp_path)
    with load(path) as file:
        plan = file.plan
    logits = next(state.name for state in plan.states if state.kind == "logits")
    markup = "<script>alert('1')</script>"
    phases = tuple(
        replace(phase, buffers=(replace(first, name=logits), replace(second, name=markup), *rest))
        for phase in plan.phases
        for first, second, *rest in [phase.buffers]
    )
    write(replace(plan, phases=phases), path)
    model = seen(path)
    onnx.checker.check_model(model)
    assert f"decode/{markup}" in values(model)
    assert {f"decode/{logits}", f"decode/{logits} (state {plan.states.index(state_of(plan, logits))})"} <= values(model)


def state_of(plan: Plan, name: str) -> State:
    return next(state for state in plan.states if state.name == name)


def test_a_plan_without_a_debug_section_says_what_is_not_known(tmp_path: Path) -> None:
    model = seen(stripped(compiled_plan(tmp_path)))
    assert about(model)["ONNX nodes"] == "not known: the plan has no debug section"


def test_the_command_writes_the_file_and_says_what_is_in_it(hjgc: CommandLine, plan: Path, tmp_path: Path) -> None:
    output = tmp_path / "view.onnx"
    ran = hjgc("inspect", plan, "--onnx-view", output, "--json")
    assert (ran.code, ran.err) == (0, "")
    model = onnx.load(output)
    launches = sum(len(function.node) for function in model.functions)
    assert json.loads(ran.out) == {
        "onnx_view": str(output),
        "bytes": output.stat().st_size,
        "segments": len(model.functions),
        "launches": launches,
    }
    first = output.read_bytes()
    ran = hjgc("inspect", plan, "--onnx-view", output)
    assert ran.code == 0 and f"segments with {launches} launches" in ran.out
    assert output.read_bytes() == first


def test_an_output_that_cannot_be_written_is_told_in_one_line(hjgc: CommandLine, plan: Path, tmp_path: Path) -> None:
    ran = hjgc("inspect", plan, "--onnx-view", tmp_path / "nowhere" / "view.onnx")
    assert ran.code == 2 and "expected a folder to write into" in ran.err and len(ran.err.splitlines()) == 1
