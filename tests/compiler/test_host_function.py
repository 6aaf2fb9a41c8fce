"""Does a function of the caller's cut a network in two that is otherwise compiled as before, and only where it may?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, HostCall, Phase, Plan, Schedule, StaticSegment
from tests.compiler.exports import SMALL, changed, compiled, copy_of, with_host_function

BETWEEN = "model.layers.0/Add_1"
LAYER = ["attention_inputs", "attention", "linear", "gated_linear", "linear"]
PROMPT_LAYER = ["attention_inputs", "attention", "linear_parts", "join", "gated_linear", "linear_parts", "join"]


def plan_with(folder: Path, value: str = BETWEEN, *, variant: str = "gqa", shaped: bool = True, **more: Any) -> Plan:
    model = changed(copy_of(variant, folder), with_host_function(value, shaped=shaped))
    return compile_model(model, folder / "plan.hjg", **{**SMALL, **more}).plan


def ops(phase: Phase, launches: tuple[int, ...] | None = None) -> list[str]:
    numbers = range(len(phase.launches)) if launches is None else launches
    return [phase.launches[number].op for number in numbers]


def kinds(schedule: Schedule) -> list[type]:
    return [type(segment) for segment in schedule.segments]


@pytest.mark.parametrize("shaped", [True, False])
def test_every_schedule_of_every_phase_is_cut_around_the_function_and_says_whose_it_is(
    shaped: bool, tmp_path: Path
) -> None:
    plan = plan_with(tmp_path, shaped=shaped)
    for phase in plan.phases:
        for schedule in phase.schedules:
            before, cut, after, *rest = schedule.segments
            assert ops(phase, before.launches) == ["embedding", "rotary_table", *LAYER]
            assert ops(phase, cut.launches) == ["host_function"]
            assert ops(phase, after.launches)[:5] == LAYER
            assert kinds(schedule)[:3] == [StaticSegment, DynamicSegment, StaticSegment]
            assert len(rest) == 2 * (schedule.name == "logits_processor")
            assert isinstance(cut, DynamicSegment)
            (reason,) = cut.reasons
            assert (reason.launch, reason.code) == (cut.launches[0], ReasonCode.HOST_READ)
            assert reason.chain == ("layers.0.host_function", "ONNX node host/steer", "the caller's function 'steer'")
            (host,) = (launch for launch in phase.launches if launch.op == "host_function")
            assert host.kernels == {"cpu": HostCall("steer")}


def cast_before_and_after(graph: ir.Graph) -> None:
    """The function in float16 in a graph of float32."""
    host = graph.node("host/steer")
    (x,), (y,) = host.inputs, host.outputs
    down = ir.node("Cast", [x], name="down", attributes={"to": ir.DataType.FLOAT16})
    up = ir.node("Cast", [y], name="up", attributes={"to": ir.DataType.FLOAT})
    down.outputs[0].name, up.outputs[0].name = "narrow", "wide"
    for user, index in y.uses():
        if user is not up:
            user.replace_input_with(index, up.outputs[0])
    host.replace_input_with(0, down.outputs[0])
    graph.insert_before(host, down)
    graph.insert_after(host, up)


def test_casts_around_it_say_nothing(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path / "cast"), with_host_function(BETWEEN))
    cast = compiled(changed(model, cast_before_and_after)).plan
    assert [ops(phase) for phase in cast.phases] == [ops(phase) for phase in plan_with(tmp_path / "plain").phases]


@pytest.mark.parametrize("value", ["Gather", BETWEEN])
def test_it_may_stand_before_the_cast_that_an_export_of_halves_begins_with(value: str, tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path, "bfloat16"), with_host_function(value))
    assert ops(compiled(model).plan.phase("decode")).count("host_function") == 1


@pytest.mark.parametrize("variant", ["mha", "bias", "qknorm", "llama3rope"])
@pytest.mark.parametrize(
    "value", ["Gather", "model.layers.0/Add", "model.layers.1/Add_1", "model.layers.0.self_attn/Reshape_3"]
)
def test_it_may_stand_wherever_one_launch_hands_rows_to_the_next(value: str, variant: str, tmp_path: Path) -> None:
    decode = plan_with(tmp_path, value, variant=variant).phase("decode")
    whole = ["embedding", "rotary_table", *LAYER, *LAYER, "vocabulary_logits", "caller_logits", "sample"]
    assert [op for op in ops(decode) if op != "host_function"] == whole
    assert ops(decode).count("host_function") == 1


def test_on_a_gpu_the_rows_behind_it_are_normalised_by_a_step_of_their_own_and_the_edges_are_full(
    tmp_path: Path,
) -> None:
    plan = plan_with(tmp_path, targets=("cpu", "sm_90"), dtype="bfloat16")
    prefill = plan.phase("prefill")
    first = ["embedding", "rotary_table", "rms_norm", *PROMPT_LAYER]
    last = ["vocabulary_logits", "caller_logits", "sample"]
    assert ops(prefill) == [*first, "host_function", "rms_norm", *PROMPT_LAYER, *last]
    for phase in plan.phases:
        (host,) = (number for number, launch in enumerate(phase.launches) if launch.op == "host_function")
        around = [edge for edge in phase.edges if host in (edge.before, edge.after)]
        assert [(edge.before, edge.after, edge.kind) for edge in around] == [
            (host - 1, host, "full"),
            (host, host + 1, "full"),
        ]
        called = {kernel.callback for kernel in phase.launches[host].kernels.values() if isinstance(kernel, HostCall)}
        assert (called, len(phase.launches[host].kernels)) == ({"steer"}, len(plan.targets))


def test_what_lives_across_it_keeps_its_memory(tmp_path: Path) -> None:
    for phase in plan_with(tmp_path, "model.layers.0/Add").phases:
        (host,) = (number for number, launch in enumerate(phase.launches) if launch.op == "host_function")
        alive = [buffer for buffer in phase.buffers if buffer.first <= host <= buffer.last]
        assert {buffer.name for buffer in alive} >= {"rotary_table.cos", "rotary_table.sin"}
        places = sorted((buffer.offset, buffer.offset + buffer.bytes) for buffer in alive)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(places))


def test_two_functions_make_two_cuts_with_names_of_their_own(tmp_path: Path) -> None:
    model = copy_of("mha", tmp_path)
    for value, name in ((BETWEEN, "steer"), ("model.layers.1/Add", "watch")):
        changed(model, with_host_function(value, name))
    decode = compiled(model).plan.phase("decode")
    assert len(decode.schedules[0].segments) == 5
    hosts = [launch for launch in decode.launches if launch.op == "host_function"]
    assert [launch.kernels["cpu"] for launch in hosts] == [HostCall("steer"), HostCall("watch")]
    assert [launch.name for launch in hosts] == ["layers.0.host_function", "layers.1.host_function"]


def test_the_same_model_gives_the_same_plan(tmp_path: Path) -> None:
    files: list[bytes] = []
    for name in ("a", "b"):
        plan_with(tmp_path / name)
        files.append((tmp_path / name / "plan.hjg").read_bytes())
    assert files[0] == files[1]


def renamed(name: str) -> Callable[[ir.Node], None]:
    return lambda node: node.attributes.update(name=ir.AttrString("name", name))


def unnamed(node: ir.Node) -> None:
    del node.attributes["name"]


def numbered(node: ir.Node) -> None:
    node.attributes["name"] = ir.AttrInt64("name", 3)


def with_more(node: ir.Node) -> None:
    node.attributes["script"] = ir.AttrString("script", "x + 1")


def with_two_operands(node: ir.Node) -> None:
    node.resize_inputs(2)
    node.replace_input_with(1, node.inputs[0])


def with_no_operand(node: ir.Node) -> None:
    node.resize_inputs(0)


def with_two_results(node: ir.Node) -> None:
    node.resize_outputs(2)
    node.outputs[1].name = "more"


def of_another_shape(node: ir.Node) -> None:
    node.outputs[0].shape = ir.Shape([1, "sequence_length", 32])


def of_a_weight(node: ir.Node) -> None:
    assert node.graph is not None
    node.replace_input_with(0, node.graph.initializers["model.norm.weight"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (unnamed, "a string attribute `name` alone, found none"),
        (numbered, "a string attribute `name` alone, found name"),
        (with_more, "a string attribute `name` alone, found name, script"),
        (renamed(""), "a name of up to 64 letters, digits and _, other than 'logits_processor', found ''"),
        (renamed("os.system"), "found 'os.system'"),
        (renamed("x" * 65), "a name of up to 64 letters"),
        (renamed("steer\n"), "a name of up to 64 letters"),
        (renamed("logits_processor"), "other than 'logits_processor', found 'logits_processor'"),
        (with_two_operands, "one operand and one result, found 2 and 1"),
        (with_no_operand, "one operand and one result, found 0 and 1"),
        (with_two_results, "one operand and one result, found 1 and 2"),
        (of_another_shape, r"hjgc.HostFunction \(its result has another shape than its operand\)"),
        (of_a_weight, "its operand is a weight or an input of the model, not an activation"),
    ],
)
def test_a_malformed_one_is_refused_with_its_node_and_file(
    change: Callable[[ir.Node], None], problem: str, tmp_path: Path
) -> None:
    model = changed(copy_of("gqa", tmp_path), with_host_function(BETWEEN))
    changed(model, lambda graph: change(graph.node("host/steer")))
    with pytest.raises(CompileError, match=problem) as caught:
        compiled(model)
    assert str(model) in str(caught.value) and "node host/steer" in str(caught.value)


def test_one_inside_of_what_would_be_one_launch_is_pointed_at(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), with_host_function("model.layers.0.input_layernorm/RMSNormalization"))
    with pytest.raises(CompileError, match="host function at node host/steer fits between two launches only"):
        compiled(model)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("model.norm/RMSNormalization", "expected logits from a norm and a product .*, found Linear"),
        ("logits", "its result is an output of the model, which a logits processor may change instead"),
    ],
)
def test_one_at_the_logits_is_refused(value: str, problem: str, tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), with_host_function(value))
    if value == "logits":
        changed(model, logits_from_the_function)
    with pytest.raises(CompileError, match=problem):
        compiled(model)


def logits_from_the_function(graph: ir.Graph) -> None:
    before, after = graph.node("lm_head/MatMul").outputs[0], graph.node("host/steer").outputs[0]
    before.name, after.name = "scores", "logits"
    graph.outputs[graph.outputs.index(before)] = after
