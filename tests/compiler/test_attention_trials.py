"""Is attention that differs from ours only now and then refused: for large numbers, at some length, by a little?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, helper, numpy_helper

from hjgc.compiler import compile_model
from hjgc.plan_format.errors import CompileError
from tests.compiler.dialects.fixtures import write_fixture

Change = Callable[[GraphProto], None]


def behind(graph: GraphProto, value: str, op_type: str, *others: str) -> NodeProto:
    """`op_type(value, others...)` in the value's place for all that use it."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == value:
                node.input[i] = "planted"
    place = next(i for i, node in enumerate(graph.node) if value in node.output)
    graph.node.insert(place + 1, helper.make_node(op_type, [value, *others], ["planted"], name="planted"))
    return graph.node[place + 1]


def constant(graph: GraphProto, name: str, numbers: object, like: str = "float32") -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(numbers, like), name))
    return name


def first(graph: GraphProto, op_type: str) -> NodeProto:
    return next(node for node in graph.node if node.op_type == op_type)


def clipped(graph: GraphProto) -> None:
    query = next(node.output[0] for node in graph.node if "layers.0/self_attn/q_proj/MatMul" in node.name)
    behind(graph, query, "Clip", constant(graph, "low", -8.0), constant(graph, "high", 8.0))


def capped(graph: GraphProto) -> None:
    """50 * tanh(scores / 50)."""
    scores = first(graph, "Softmax").input[0]
    over = behind(graph, scores, "Div", constant(graph, "cap", 50.0))
    over.output[0] = "over"
    tanh = helper.make_node("Tanh", ["over"], ["tanh"], name="tanh")
    again = helper.make_node("Mul", ["tanh", "cap"], ["planted"], name="again")
    place = list(graph.node).index(over)
    graph.node.insert(place + 1, tanh)
    graph.node.insert(place + 2, again)


def stretched(graph: GraphProto) -> None:
    """Cosines a little over 1, as some ways to stretch the context have them."""
    behind(graph, first(graph, "Cos").output[0], "Mul", constant(graph, "factor", 1.01))


def masked_from_40_on(graph: GraphProto) -> None:
    """A table added to the scores, whose keys from the 40th on are less than they were."""
    table = np.zeros((1, 1, 1, 4096), np.float32)
    table[..., 40:] = -1.0
    constant(graph, "table", table)
    scores = first(graph, "Softmax").input[0]
    last, zero, three = (constant(graph, name, [n], "int64") for name, n in (("last", 3), ("zero", 0), ("three", 3)))
    added = behind(graph, scores, "Add", "part")
    made = (
        helper.make_node("Shape", [scores], ["sizes"]),
        helper.make_node("Gather", ["sizes", last], ["end"]),
        helper.make_node("Slice", ["table", zero, "end", three], ["part"]),
    )
    for node in made:
        graph.node.insert(list(graph.node).index(added), node)


@pytest.mark.parametrize("change", [clipped, capped, stretched, masked_from_40_on])
def test_what_is_nearly_ours_is_refused_with_the_sizes_at_which_it_is_not(change: Change, tmp_path: Path) -> None:
    model = write_fixture("ts4-llama2", tmp_path)
    proto = onnx.load(model, load_external_data=False)
    change(proto.graph)
    onnx.save(proto, model)
    with pytest.raises(CompileError, match="of causal attention with rotated heads, seen with") as caught:
        compile_model(model, tmp_path / "plan.hjg", context=200, kind="decoder")
    assert "self_attn" in str(caught.value.field)


def test_the_same_graph_without_a_change_compiles(tmp_path: Path) -> None:
    model = write_fixture("ts4-llama2", tmp_path)
    compile_model(model, tmp_path / "plan.hjg", context=200, kind="decoder")
