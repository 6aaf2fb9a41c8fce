"""Are sub-models that compute the same the same bytes, whatever a file calls what is in them, and right as ever?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hjgc.compiler.function.numbering import named, numbered
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.structs import Island
from hjgc.tools.onnx_backend import PreparedModel
from tests.compiler.function.one_node import some

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
LAYERS = """layers (float[N,4] x, bool go) => (y) <float[N,4] b, float[N,4] d> {
    a = Exp(x)
    [layers_0_act] b = If (go) <
        then_branch = first () => (first_out) <float[4] first_scale = {1, 2, 3, 4}> {
            first_mul = Mul(a, first_scale) [layers_0_out] first_out = Clip(first_mul, , high) },
        else_branch = second () => (second_out) { second_out = Add(a, a) }>
    c = Exp(b)
    [layers_1_act] d = If (go) <
        then_branch = third () => (third_out) <float[4] third_scale = {1, 2, 3, 4}> {
            third_mul = Mul(c, third_scale) [layers_1_out] third_out = Clip(third_mul, , high) },
        else_branch = fourth () => (fourth_out) { fourth_out = Add(c, c) }>
    y = Exp(d)
}"""
"""Two islands with a launch before, between and behind them."""
NAMES_LIKE_OURS = """names (float[N,4] x1, float[N,4] x0, bool v0) => (v1, y0) {
    y1 = Exp(x1)
    x2 = Exp(x0)
    v1, y0 = If (v0) <
        then_branch = x0 () => (v3, v4) { v2 = Sub(y1, x2) v3 = Identity(v2) v4 = Neg(y1) },
        else_branch = y0 () => (v4, v3) { v2 = Sub(x2, y1) v4 = Identity(v2) v3 = Neg(x2) }>
}"""
NESTED = """nested (float[N,4] x, bool go, int64 trips) => (sums, states) {
    a = Exp(x)
    none = Sub(a, a)
    sums, states = Loop (trips, , none) <body = body (int64 i, bool on, float[N,4] sum) => (on_out, sum_out, state) {
        on_out = Identity(on)
        step = If (go) <
            then_branch = yes () => (s) { scaled = Mul(a, sum) s = Add(scaled, a) },
            else_branch = no () => (s) { s = Clip(a, , limit) }>
        sequence = Unsqueeze(step, first)
        , state = RNN <hidden_size = 2> (sequence, weight, again, , , start)
        sum_out = Add(sum, step) }>
}"""
"""A loop with a branch inside, which reads what is outside of both; operands and results that are left out."""


def parsed(text: str, **constants: Any) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def layers(second: float = 4.0) -> onnx.ModelProto:
    """`LAYERS`, where the last scale of the second layer is this."""
    model = parsed(LAYERS.replace("third_scale = {1, 2, 3, 4}", f"third_scale = {{1, 2, 3, {second}}}"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "high"))
    model.graph.node[3].doc_string = "the second layer"
    model.graph.node[3].attribute[0].g.doc_string = "a branch of the second layer"
    return model


def check(model: onnx.ModelProto, inputs: dict[str, Any]) -> tuple[Island, ...]:
    """What ONNX Runtime computes of the whole is what the plan computes. Its islands."""
    prepared = PreparedModel(model, {"N": (1, 8)})
    try:
        found = prepared.run(inputs)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        expected: list[Any] = list(session.run(None, inputs))
        for mine, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-5)
        return prepared.plan.islands
    finally:
        prepared.close()


@pytest.mark.parametrize("go", [True, False])
def test_islands_that_differ_by_names_alone_are_one_sub_model(go: bool) -> None:
    one, other = check(layers(), {"x": some(3, 4), "go": np.array(go)})
    assert (one.offset, one.length, one.sha256) == (other.offset, other.length, other.sha256)
    assert (one.nodes, other.nodes) == (("layers_0_act",), ("layers_1_act",))
    assert (one.inputs, one.outputs) == (other.inputs, other.outputs) == (("x0", "x1"), ("y0",))


def test_islands_with_other_numbers_are_two() -> None:
    one, other = check(layers(5), {"x": some(3, 4), "go": np.array(True)})
    assert one.sha256 != other.sha256
    assert other.offset == one.length


@pytest.mark.parametrize("go", [True, False])
def test_names_like_ours_mean_what_they_did(go: bool) -> None:
    (island,) = check(parsed(NAMES_LIKE_OURS), {"x1": some(2, 4), "x0": some(2, 4) + 1, "v0": np.array(go)})
    assert (island.inputs, island.outputs) == (("x0", "x1", "x2"), ("y0", "y1"))


@pytest.mark.parametrize("go", [True, False])
@pytest.mark.parametrize("trips", [1, 3])
def test_a_body_reads_what_is_outside_of_it_and_leaves_out_what_it_did(go: bool, trips: int) -> None:
    weights = {"weight": some(1, 2, 4), "again": some(1, 2, 2), "start": some(1, 3, 2)}
    model = parsed(NESTED, limit=np.float32(1.5), first=np.array([0]), **weights)
    check(model, {"x": some(3, 4), "go": np.array(go), "trips": np.array(trips)})


def sub_model(text: str, places: Sequence[int | None], **constants: Any) -> onnx.GraphProto:
    return onnx.load_from_string(numbered(parsed(text, **constants).SerializeToString(), places)[0]).graph


def test_everything_is_called_by_its_place() -> None:
    text = """f (float[N] b, float[M] a, bool c) => (z) {
        w = Add(b, second) u = If (c) <then_branch = g () => (t) { s = Mul(w, first) t = Sub(s, b) },
                                       else_branch = h () => (t) { t = Identity(a) }>
        z = Neg(u)
    }"""
    graph = sub_model(text, [None, 0, 1], first=np.float32(1), second=np.float32(2))
    assert [value.name for value in (*graph.input, *graph.output)] == ["x0", "x1", "x2", "y0"]
    assert [(tensor.name, numpy_helper.to_array(tensor).item()) for tensor in graph.initializer] == [
        ("v0", 2),
        ("v2", 1),
    ]
    assert [(node.name, list(node.input), list(node.output)) for node in graph.node] == [
        ("extra0", ["x0", "v0"], ["v1"]),
        ("0", ["x2"], ["v6"]),
        ("1", ["v6"], ["y0"]),
    ]
    branches = [attribute.g for attribute in graph.node[1].attribute]
    assert [(node.name, list(node.input), list(node.output)) for branch in branches for node in branch.node] == [
        ("0.1", ["v1", "v2"], ["v3"]),
        ("0.2", ["v3", "x0"], ["v4"]),
        ("0.3", ["x1"], ["v5"]),
    ]
    assert [branch.output[0].name for branch in branches] == ["v4", "v5"]


def looping(sizes: str, **inside: str) -> onnx.GraphProto:
    """A scan whose state and element have these sizes."""
    state, element = sizes.split()
    return sub_model(
        f"""f (float[{state}] state, float[T,{element}] elements) => (last, all) {{
            last, all = Scan <num_scan_inputs = 1, body = body (float[{state}] s, float[{element}] e) =>
                (float[{state}] s_out, float[{state}] out) {{ s_out = Add(s, e) out = Identity(s_out) }}>
                (state, elements)
        }}""",
        [0],
    )


def test_sizes_of_one_name_stay_the_same_size() -> None:
    assert looping("A A") == looping("N N") != looping("N M") == looping("rows unknown__7")
    assert [axis.dim_param for value in looping("A A").input for axis in value.type.tensor_type.shape.dim] == [
        "d0", "d1", "d0",
    ]  # fmt: skip


def test_tensors_among_attributes_have_no_name() -> None:
    node = helper.make_node("Constant", [], ["z"], value=helper.make_tensor("mine", TensorProto.FLOAT, [1], [3.0]))
    graph = helper.make_graph([node], "f", [], [onnx.ValueInfoProto(name="z")])
    data, _, _ = numbered(helper.make_model(graph).SerializeToString(), [0])
    assert onnx.load_from_string(data).graph.node[0].attribute[0].t.name == ""


def test_a_numbered_node_is_named_again_for_a_person() -> None:
    data, _, _ = numbered(layers().SerializeToString(), [None, 0, None, 1, 2])
    graph = onnx.load_from_string(named(data, ["/first", "/second"])).graph
    assert [node.name for node in graph.node] == ["extra0", "/first #0", "extra1", "/second #1", "2"]
    assert [node.name for node in graph.node[3].attribute[0].g.node] == ["/second #1.1", "/second #1.2"]


def test_what_onnx_runtime_says_of_a_sub_model_names_the_users_nodes() -> None:
    """This one is none that ONNX Runtime has."""
    with pytest.raises(CompileError, match=r"implementation for ImageDecoder.*'mine #0'") as caught:
        PreparedModel(parsed("f (uint8[N] x) => (y) { [mine] y = ImageDecoder(x) }"))
    assert caught.value.field == "node mine"
