"""Does a small change to a graph either make no difference or end in an error that names the node and the reason?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hjgc.compiler import compile_model
from hjgc.compiler.recognise import IN_PATTERNS
from hjgc.compiler.rules import fuse, lift
from hjgc.compiler.rules.rule import DOMAIN, Journal
from hjgc.plan_format import load
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.opening import open_session
from tests.compiler.exports import changed, compiled, copy_of, exported

Change = Callable[[ir.Graph], None]
ATTENTION = "model.layers.0.self_attn"
HEADS_TOGETHER = "node model.layers.0.self_attn/Reshape_3"
NOT_OURS = "of causal attention with rotated heads, seen with"
MLP = "model.layers.0.mlp"
POST = "model.layers.0.post_attention_layernorm"


def steps(plan: Plan) -> list[tuple[str, str, list[tuple[str, str, int]]]]:
    """Each launch of each phase: name, op, and which table entry each role takes."""
    return [
        (launch.name, launch.op, [(operand.role, operand.space, operand.index) for operand in launch.operands])
        for phase in plan.phases
        for launch in phase.launches
    ]


@cache
def unchanged(variant: str) -> Plan:
    with TemporaryDirectory() as folder:
        return compiled(copy_of(variant, Path(folder) / "model")).plan


def insert(graph: ir.Graph, op_type: str, value: str, user: str, others: tuple[str, ...] = (), **more: Any) -> ir.Value:
    """Put `op_type(value, others...)` between the value and the node that uses it."""
    source, node = find(graph, value), graph.node(user)
    made = ir.node(op_type, [source, *(find(graph, name) for name in others)], name=f"planted/{op_type}", **more)
    made.outputs[0].name, made.outputs[0].shape, made.outputs[0].type = "planted", source.shape, source.type
    for index, other in enumerate(node.inputs):
        if other is source:
            node.replace_input_with(index, made.outputs[0])
    graph.insert_before(node, made)
    return made.outputs[0]


def find(graph: ir.Graph, name: str) -> ir.Value:
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return next(value for value in values if value.name == name)


def operator(name: str, op_type: str) -> Change:
    """Another operator at that node."""

    def change(graph: ir.Graph) -> None:
        graph.node(name).op_type = op_type

    return change


def attribute(name: str, key: str, value: int | float) -> Change:
    def change(graph: ir.Graph) -> None:
        kind = ir.AttrInt64 if isinstance(value, int) else ir.AttrFloat32
        graph.node(name).attributes[key] = kind(key, value)  # type: ignore[arg-type]

    return change


def swapped(name: str) -> Change:
    """The node's two operands the other way round."""

    def change(graph: ir.Graph) -> None:
        node = graph.node(name)
        first, second = node.inputs
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)

    return change


def bypassed(*names: str) -> Change:
    """The first operand of these nodes in place of their result."""

    def change(graph: ir.Graph) -> None:
        for name in names:
            node = graph.node(name)
            assert node.inputs[0] is not None
            node.outputs[0].replace_all_uses_with(node.inputs[0])

    return change


def rewired(name: str, index: int, value: str) -> Change:
    def change(graph: ir.Graph) -> None:
        graph.node(name).replace_input_with(index, find(graph, value))

    return change


def weight_computed(graph: ir.Graph) -> None:
    weight = f"{ATTENTION}.q_proj.weight"
    insert(graph, "Mul", weight, f"{ATTENTION}.q_proj/Transpose", (weight,))


def planted_sum(graph: ir.Graph) -> None:
    """Each token's row with those before it added: what comes of it depends on where a call begins."""
    axis = ir.Value(name="planted.axis", const_value=ir.tensor(np.array(1, np.int64), name="planted.axis"))
    axis.dtype, axis.shape = ir.DataType.INT64, ir.Shape([])
    graph.register_initializer(axis)
    insert(graph, "CumSum", "model.layers.0/Add", f"{POST}/RMSNormalization", ("planted.axis",))


def hidden_state_given_out(graph: ir.Graph) -> None:
    graph.outputs.append(find(graph, "model.layers.0/Add_1"))


def caches_crossed(graph: ir.Graph) -> None:
    one, other = find(graph, "present.0.key"), find(graph, "present.1.key")
    one.name, other.name = other.name, one.name


def logits_renamed(graph: ir.Graph) -> None:
    find(graph, "logits").name = "scores"


def logits_doubled(graph: ir.Graph) -> None:
    logits = find(graph, "logits")
    index, logits.name = graph.outputs.index(logits), "half"
    node = ir.node("Add", [logits, logits], name="planted/Add")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "logits", logits.shape, logits.type
    graph.append(node)
    graph.outputs[index] = node.outputs[0]


def planted(op_type: str, domain: str = "") -> Change:
    """An operator between the two halves of the first layer."""

    def change(graph: ir.Graph) -> None:
        insert(
            graph,
            op_type,
            "model.layers.0/Add",
            "model.layers.0.post_attention_layernorm/RMSNormalization",
            domain=domain,
        )
        graph.opset_imports[domain] = 23 if domain == "" else 1

    return change


REFUSED: dict[str, tuple[str, Change, str, str]] = {
    # case: (variant, change, the field named, words of the reason)
    "mask_excludes_the_token_itself": ("gqa", operator("LessOrEqual", "Less"), HEADS_TOGETHER, NOT_OURS),
    "mask_of_the_future": ("gqa", swapped("LessOrEqual"), HEADS_TOGETHER, NOT_OURS),
    "mask_counts_from_one": ("gqa", rewired("Range", 0, "int64(1)"), HEADS_TOGETHER, NOT_OURS),
    "queries_counted_from_zero": ("gqa", rewired("Range_1", 0, "int64(0)"), HEADS_TOGETHER, NOT_OURS),
    "keys_only_of_the_past": ("gqa", rewired("Range", 1, "Squeeze_1"), HEADS_TOGETHER, NOT_OURS),
    "no_mask": ("gqa", rewired(f"{ATTENTION}/Attention", 3, "Unsqueeze_1"), HEADS_TOGETHER, NOT_OURS),
    "is_causal": ("gqa", attribute(f"{ATTENTION}/Attention", "is_causal", 1), HEADS_TOGETHER, NOT_OURS),
    "softcap": ("gqa", attribute(f"{ATTENTION}/Attention", "softcap", 30.0), HEADS_TOGETHER, NOT_OURS),
    "interleaved": (
        "gqa", attribute(f"{ATTENTION}/RotaryEmbedding_1", "interleaved", 1), HEADS_TOGETHER, NOT_OURS,
    ),
    "partly_rotated": (
        "gqa", attribute(f"{ATTENTION}/RotaryEmbedding", "rotary_embedding_dim", 8), HEADS_TOGETHER,
        "RotaryEmbedding cannot be computed",
    ),
    "sine_for_cosine": (
        "gqa", rewired(f"{ATTENTION}/RotaryEmbedding", 1, "Sin"), f"node {ATTENTION}/Reshape", "ai.onnx.Reshape",
    ),
    "bias_on_the_query_only": (
        "bias", bypassed(f"{ATTENTION}.k_proj/Add", f"{ATTENTION}.v_proj/Add"), HEADS_TOGETHER,
        "only some of q, k and v have a bias",
    ),
    "head_norms_differ": (
        "qknorm", attribute(f"{ATTENTION}.k_norm/RMSNormalization", "epsilon", 0.5), HEADS_TOGETHER,
        "different epsilons",
    ),
    "heads_put_together_wrongly": (
        "gqa", rewired(f"{ATTENTION}/Reshape_3", 1, "int64[1,-1,4,16]"), HEADS_TOGETHER, NOT_OURS,
    ),
    "one_cache_for_two_layers": (
        "gqa", rewired("model.layers.1.self_attn/Concat", 0, "past_key_values.0.key"),
        "node model.layers.1.self_attn/Reshape_3", "not one of keys and one of values",
    ),
    "norm_over_two_axes": (
        "gqa", attribute("model.layers.0.input_layernorm/RMSNormalization", "axis", 1),
        "node model.layers.0.input_layernorm/RMSNormalization", "more than the last axis",
    ),
    "a_computed_weight": ("gqa", weight_computed, f"node {ATTENTION}.q_proj/MatMul", "second operand is not a weight"),
    "a_bias_as_long_as_the_other_axis": (
        "bias", rewired(f"{ATTENTION}.k_proj/Add", 1, f"{ATTENTION}.q_proj.bias"), f"node {ATTENTION}.k_proj/Add",
        "the bias has shape (64,) for 32 columns",
    ),
    "tokens_looked_up_elsewhere": (
        "gqa", rewired("Gather", 1, "position_ids"), "node Gather", "its ids are not the input input_ids",
    ),
    "rotation_by_token": (
        "gqa", rewired("Unsqueeze", 0, "input_ids"), HEADS_TOGETHER, "by which angles it turns heads is not found",
    ),
    "logits_renamed": ("gqa", logits_renamed, "logits", "expected a decoder with input_ids and logits"),
    "logits_doubled": ("gqa", logits_doubled, "node planted/Add", "added to itself"),
    "a_hidden_state_is_an_output": ("gqa", hidden_state_given_out, "output model.layers.0/Add_1", "found more"),
    "caches_crossed": ("gqa", caches_crossed, HEADS_TOGETHER, "not one of keys and one of values"),
    "an_operator_of_somebody_else": ("gqa", planted("Magic", "com.acme"), "node planted/Magic", "com.acme:Magic"),
    "a_sum_over_other_tokens": ("gqa", planted_sum, "node planted/CumSum", "each row by itself"),
    "an_operator_that_onnx_does_not_have": ("gqa", planted("Magic"), "node 'planted/Magic'", "No Op registered for"),
}  # fmt: skip


def void(_: object) -> None:
    """For a change that is one expression."""


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_means_something_else_is_refused_by_node_and_reason(case: str, tmp_path: Path) -> None:
    variant, change, field, words = REFUSED[case]
    model = changed(copy_of(variant, tmp_path), change)
    with pytest.raises(CompileError) as caught:
        compiled(model)
    error = caught.value
    assert error.place == str(model)
    assert str(error.field).startswith(field)
    assert words in error.problem
    assert "expected" in error.problem and "found" in error.problem
    assert "\n" not in str(error)
    assert not (tmp_path / "plan.hjg").exists()


def shapes_forgotten(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if value not in graph.outputs:
                value.shape = value.type = None


def reversed_nodes(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        graph.remove(node)
        graph.append(node)


def both(*changes: Change) -> Change:
    def change(graph: ir.Graph) -> None:
        for each in changes:
            each(graph)

    return change


SAME: dict[str, tuple[str, Change]] = {
    "bias_added_first": ("bias", both(*(swapped(f"{ATTENTION}.{name}_proj/Add") for name in "qkv"))),
    "product_added_first": ("gqa", both(swapped("model.layers.0/Add"), swapped("model.layers.0/Add_1"))),
    "up_before_gate": ("gqa", swapped(f"{MLP}/Mul_1")),
    "sigmoid_before_its_argument": ("gqa", swapped(f"{MLP}/Mul")),
    "frequencies_before_positions": ("gqa", swapped("Mul")),
    "new_tokens_before_cached": ("gqa", swapped("Add")),
    "nodes_in_reverse": ("qknorm", reversed_nodes),
    "no_shapes_noted": ("qknorm", shapes_forgotten),
}


@pytest.mark.parametrize("case", SAME)
def test_a_graph_that_means_the_same_compiles_to_the_same_steps(case: str, tmp_path: Path) -> None:
    variant, change = SAME[case]
    plan = compiled(changed(copy_of(variant, tmp_path), change)).plan
    assert steps(plan) == steps(unchanged(variant))
    assert plan.weights == unchanged(variant).weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_cast_to_float_compile_to_the_same_steps_out_of_the_half_as_long_sources(
    dtype: str, tmp_path: Path
) -> None:
    plan = compiled(copy_of("bias", tmp_path, dtype)).plan
    assert steps(plan) == steps(unchanged("bias"))
    assert {source.dtype for weight in plan.weights for source in weight.sources} == {dtype}
    assert {weight.dtype for weight in plan.weights} == {"float32"}


def cast_after_transpose(graph: ir.Graph) -> None:
    """Transpose(Cast(w)) becomes Cast(Transpose(w))."""
    for node in [node for node in graph if node.op_type == "Transpose"]:
        cast = node.inputs[0].producer() if node.inputs[0] is not None else None
        if cast is None or cast.op_type != "Cast":
            continue
        node.replace_input_with(0, cast.inputs[0])
        node.outputs[0].dtype = ir.DataType.FLOAT16
        late = ir.node("Cast", [node.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}/late")
        late.outputs[0].name, late.outputs[0].dtype = f"{node.name}/late", ir.DataType.FLOAT
        users = list(node.outputs[0].uses())
        graph.insert_after(node, late)
        for user, index in users:
            if user is not late:
                user.replace_input_with(index, late.outputs[0])


def test_weights_may_be_cast_after_they_are_transposed(tmp_path: Path) -> None:
    plan = compiled(changed(copy_of("gqa", tmp_path, "float16"), cast_after_transpose)).plan
    assert steps(plan) == steps(unchanged("gqa"))


def read(tensor: ir.TensorProtocol) -> NDArray[np.float32]:
    """The float32 tensor in its file: onnx_ir itself reads no file that has hard links."""
    assert isinstance(tensor, ir.ExternalTensor)
    shape = tuple(int(axis) for axis in tensor.shape.numpy())
    file = Path(tensor.base_dir) / tensor.location
    return np.fromfile(file, np.float32, tensor.size, offset=tensor.offset or 0).reshape(shape)


def lie_in_columns(graph: ir.Graph, file: Path) -> None:
    """Write every weight of a product the other way round, as [K, N], and drop its Transpose."""
    with file.open("wb") as out:
        for node in [node for node in graph if node.op_type == "Transpose"]:
            weight = node.inputs[0]
            if weight is None or weight.const_value is None:
                continue
            array = np.ascontiguousarray(read(weight.const_value).T)
            weight.const_value = ir.ExternalTensor(
                file.name, out.tell(), array.nbytes, ir.DataType.FLOAT, shape=ir.Shape(array.shape),
                name=str(weight.name), base_dir=file.parent,
            )  # fmt: skip
            weight.shape = ir.Shape(array.shape)
            out.write(array.tobytes())
            node.outputs[0].replace_all_uses_with(weight)


def logits(plan: Path) -> bytes:
    with open_session(plan) as session, session.request(logits=True) as request:
        request.prefill([5, 3, 17, 90, 4], {})
        request.decode()
        return request.logits().tobytes()


def test_weights_that_lie_in_columns_are_turned_when_they_are_packed_and_give_the_same_bits(tmp_path: Path) -> None:
    rows = compiled(copy_of("bias", tmp_path / "rows"))
    model = copy_of("bias", tmp_path / "columns")
    turned = compiled(changed(model, lambda graph: lie_in_columns(graph, model.with_name("columns.bin"))))
    assert steps(turned.plan) == steps(rows.plan)
    products = [weight for weight in turned.plan.weights if "proj" in weight.name or "lm_head" in weight.name]
    matrices = [weight for weight in products if len(weight.shape) == 2]
    assert len(matrices) == 2 * 4 + 1
    assert all(source.transpose for weight in matrices for source in weight.sources)
    assert [w.shape for w in turned.plan.weights] == [w.shape for w in rows.plan.weights]
    assert logits(turned.path) == logits(rows.path)


def test_the_scale_of_attention_is_the_graphs_own_where_it_has_one(tmp_path: Path) -> None:
    change = attribute(f"{ATTENTION}/Attention", "scale", 0.5)
    plan = compiled(changed(copy_of("gqa", tmp_path), change)).plan
    scales = {launch.name: launch.attributes.get("scale") for launch in plan.phase("decode").launches}
    assert (scales["layers.0.attention"], scales["layers.1.attention"]) == (0.5, 0.25)


def test_a_clean_model_leaves_no_note_of_a_rule_that_did_not_fire(tmp_path: Path) -> None:
    for variant in ("mha", "qknorm"):
        output = compile_model(exported(variant) / "model.onnx", tmp_path / f"{variant}.hjg").path
        debug = load(output).debug()
        assert debug is not None and debug.notes == ()


def test_the_operators_said_to_be_in_patterns_are_those_that_are() -> None:
    patterns = [kind.rule(Journal())._target_pattern for kind in (*lift.RULES, *fuse.RULES)]
    nodes = [node.op_identifier() for pattern in patterns for node in pattern]
    assert all(found is not None for found in nodes)
    standard = {name for domain, name, _ in filter(None, nodes) if domain != DOMAIN}
    assert standard | {"Cos", "Sin"} == IN_PATTERNS
