"""Does ONNX Runtime compute what no launch does, between the launches of a decoder, and is the rest captured still?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hjgc.compiler import CompileResult, compile_model
from hjgc.plan_format import load
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, IslandCall, StaticSegment
from hjgc.runtime.opening import open_session
from tests.compiler.dialects.judging import STEPS, compared, judge_of
from tests.compiler.exports import SMALL, changed, copy_of
from tests.compiler.test_recognise import ATTENTION, MLP, POST, Change, find, insert, operator, planted, rewired

TOLERANCE = 1e-4
"""Of logits up to 4: sums of float32 in another order."""


def in_every_layer(op_type: str) -> Change:
    """An operator on what attention gives, in both layers."""

    def change(graph: ir.Graph) -> None:
        for layer in range(2):
            name = f"model.layers.{layer}"
            insert(graph, op_type, f"{name}.self_attn.o_proj/MatMul", f"{name}/Add")
            graph.node(f"planted/{op_type}").name = f"planted/{op_type}.{layer}"
            find(graph, "planted").name = f"planted.{layer}"

    return change


def echoed(graph: ir.Graph, node: ir.Node, op_type: str = "SampleOp") -> None:
    """What the node gives goes through an operator of ONNX Runtime's that is none of ours; SampleOp gives what it
    gets."""
    source = node.outputs[0]
    echo = ir.node(op_type, [source], name=f"{node.name}.echo", domain="com.microsoft")
    graph.opset_imports["com.microsoft"] = 1
    result = echo.outputs[0]
    result.name, result.shape, result.type = f"{source.name}.echo", source.shape, source.type
    for user, index in tuple(source.uses()):
        if user is not echo:
            user.replace_input_with(index, result)
    graph.insert_after(node, echo)


def on_the_host(op_type: str) -> Change:
    """An operator in both layers, and behind it one that only ONNX Runtime computes."""

    def change(graph: ir.Graph) -> None:
        in_every_layer(op_type)(graph)
        for layer in range(2):
            echoed(graph, graph.node(f"planted/{op_type}.{layer}"))

    return change


def echoes_behind_both_halves(graph: ir.Graph) -> None:
    behind_both_halves(graph)
    for name in ("planted/first", "planted/Elu"):
        echoed(graph, graph.node(name))


def behind_both_halves(graph: ir.Graph) -> None:
    """An operator on what attention gives, and one on what the products behind it give: the second island reads rows
    that the first gives."""
    insert(graph, "Elu", f"{ATTENTION}.o_proj/MatMul", "model.layers.0/Add")
    find(graph, "planted").name = "planted.first"
    graph.node("planted/Elu").name = "planted/first"
    insert(graph, "Elu", f"{MLP}.down_proj/MatMul", "model.layers.0/Add_1")


def normalised(graph: ir.Graph) -> None:
    """A layer norm, which is none of a LLaMA's."""
    insert(graph, "LayerNormalization", "model.layers.0/Add", f"{POST}/RMSNormalization", ("model.norm.weight",))


def reshaped(graph: ir.Graph) -> None:
    made = insert(graph, "Reshape", "Gather", "model.layers.0/Add", ("int64[1,-1,64]",))
    made.shape = ir.Shape(["sequence_length", 1, 64])


def added_to_itself(graph: ir.Graph) -> None:
    graph.node("model.layers.0/Add").replace_input_with(0, find(graph, f"{ATTENTION}.o_proj/MatMul"))


CHANGES: dict[str, tuple[Change, int]] = {
    # what no rule of a decoder covers, and how many islands it makes: none where launches compute it
    "an_operator_on_the_residual": (planted("Erf"), 0),
    "one_in_every_layer": (in_every_layer("Elu"), 0),
    "another_activation": (operator(f"{MLP}/Sigmoid", "Tanh"), 0),
    "gate_times_itself": (rewired(f"{MLP}/Mul_1", 0, f"{MLP}.gate_proj/MatMul"), 0),
    "a_product_added_to_itself": (added_to_itself, 0),
    "a_view_of_the_rows": (reshaped, 0),
    "a_norm_of_its_own": (normalised, 0),
    "a_softmax": (planted("Softmax"), 0),
    "behind_both_halves": (behind_both_halves, 0),
    "an_echo_in_every_layer": (on_the_host("Elu"), 2),
    "echoes_behind_both_halves": (echoes_behind_both_halves, 2),
}


def compiled(change: Change, folder: Path) -> CompileResult:
    model = changed(copy_of("gqa", folder), change)
    return compile_model(model, model.with_name("plan.hjg"), **SMALL)


@pytest.mark.parametrize("case", CHANGES)
def test_the_plan_computes_what_the_file_says(case: str, tmp_path: Path) -> None:
    change, islands = CHANGES[case]
    result = compiled(change, tmp_path)
    assert len(result.plan.islands) == islands
    run = compared(result, judge_of(tmp_path / "model.onnx", result.plan), TOLERANCE)
    assert run.first_different(TOLERANCE) is None
    assert len(run.results) == STEPS + 1


def test_what_lies_between_islands_stays_static_and_islands_say_why_not(tmp_path: Path) -> None:
    plan = compiled(on_the_host("Elu"), tmp_path).plan
    for phase in plan.phases:
        segments = phase.schedule().segments
        assert [type(segment) for segment in segments] == [StaticSegment, DynamicSegment] * 2 + [StaticSegment]
        for number, segment in enumerate(segments[1::2]):
            assert isinstance(segment, DynamicSegment)
            assert {reason.code for reason in segment.reasons} == {ReasonCode.NO_TEMPLATE}
            assert any(f"ONNX node planted/Elu.{number}.echo" in reason.chain for reason in segment.reasons)
            assert phase.launches[segment.launches[0]].kernels == {"cpu": IslandCall(number)}


def test_islands_of_layers_are_one_sub_model(tmp_path: Path) -> None:
    one, other = compiled(on_the_host("Elu"), tmp_path).plan.islands
    assert (one.offset, one.length, one.sha256) == (other.offset, other.length, other.sha256)
    assert "planted/Elu.0.echo" in one.nodes
    assert "planted/Elu.1.echo" in other.nodes


def test_an_island_runs_in_a_session_beside_graphs_and_gives_the_same_bits(tmp_path: Path) -> None:
    path = compiled(on_the_host("Elu"), tmp_path).path
    ids = [5, 3, 17, 90, 4]

    def answer() -> tuple[list[int], bytes]:
        with session.request(logits=True) as request:
            tokens = [request.prefill(ids, {}), *(request.decode() for _ in range(5))]
            return tokens, request.logits().tobytes()

    with open_session(path) as session:
        plain = answer()
        assert session.wait_captured(60)
        assert answer() == plain
        report = session.report()
    states = {entry["state"] for entry in report["segments"] if entry["kind"] == "static" and entry["hits"]}
    assert states == {"PROMOTED"}
    assert all(entry["runs"] > 0 for entry in report["segments"] if entry["schedule"] == "default" and "runs" in entry)


@pytest.mark.parametrize("change", [in_every_layer("Elu"), on_the_host("Elu")])
def test_a_prompt_in_parts_is_the_prompt_in_one(change: Change, tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), change)
    ids = np.random.default_rng(3).integers(0, 100, 30).tolist()
    found: list[np.ndarray] = []
    for most in (32, 7):
        path = compile_model(model, tmp_path / f"{most}.hjg", prompt=(1, most), context=64).path
        with open_session(path) as session, session.request(logits=True) as request:
            request.prefill(ids, {})
            found.append(request.logits().copy())
    assert np.abs(found[0] - found[1]).max() < TOLERANCE


def test_large_weights_of_an_island_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hjgc.compiler.foreign_model.INSIDE_BYTES", 64)
    monkeypatch.setattr("hjgc.compiler.tables.SMALL_BYTES", 64)
    result = compiled(scaled_by_a_weight, tmp_path)
    (weight,) = (weight for weight in result.plan.weights if weight.placement == "cpu")
    assert weight.name.startswith("model.norm.weight")
    run = compared(result, judge_of(tmp_path / "model.onnx", result.plan), TOLERANCE)
    assert run.first_different(TOLERANCE) is None


def late_sum(graph: ir.Graph) -> None:
    """Each token's place, past the fortieth: what an island computes must not depend on how many rows it gets."""
    source = find(graph, f"{ATTENTION}.o_proj/MatMul")
    for name, number in (("zero", 0.0), ("forty", 40.0)):
        value = ir.Value(name=name, const_value=ir.tensor(np.float32(number), name=name))
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([])
        graph.register_initializer(value)
    axis = ir.Value(name="axis", const_value=ir.tensor(np.int64(1), name="axis"))
    axis.dtype, axis.shape = ir.DataType.INT64, ir.Shape([])
    graph.register_initializer(axis)
    insert(graph, "Mul", source.name or "", "model.layers.0/Add", ("zero",))
    made = graph.node("planted/Mul")
    chain, last = list[ir.Node](), made.outputs[0]
    for kind, other in (("Exp", None), ("CumSum", "axis"), ("Sub", "forty"), ("Relu", None)):
        node = ir.node(kind, [last, *([find(graph, other)] if other else [])], name=f"late/{kind}")
        last = node.outputs[0]
        last.name, last.shape, last.type = f"late.{kind}", source.shape, source.type
        chain.append(node)
    graph.insert_after(made, chain)
    add = graph.node("model.layers.0/Add")
    add.replace_input_with([value is made.outputs[0] for value in add.inputs].index(True), last)


def test_what_depends_on_the_number_of_rows_is_refused_also_far_behind(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), late_sum)
    with pytest.raises(CompileError, match="each row by itself, found other numbers among 700 rows"):
        compile_model(model, tmp_path / "plan.hjg", **SMALL)


def scaled_by_a_weight(graph: ir.Graph) -> None:
    """Columns of what attention gives, each times a number."""
    insert(graph, "Mul", f"{ATTENTION}.o_proj/MatMul", "model.layers.0/Add", ("model.norm.weight",))


def test_the_debug_map_and_the_notes_name_the_nodes(tmp_path: Path) -> None:
    with load(compiled(planted("Erf"), tmp_path).path) as file:
        debug = file.debug()
    assert debug is not None
    launches = next(entry.launches for entry in debug.phases if entry.phase == "decode")
    assert ("planted/Erf",) in [launch.nodes for launch in launches]


def test_launches_of_their_own_stay_in_the_static_segment(tmp_path: Path) -> None:
    plan = compiled(in_every_layer("Elu"), tmp_path).plan
    for phase in plan.phases:
        (segment,) = phase.schedule().segments
        assert isinstance(segment, StaticSegment)
        assert [launch.op for launch in phase.launches].count("elementwise") == 2
