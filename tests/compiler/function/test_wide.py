"""Does a CPU round weights of half precision only where somebody sees them?"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hjgc.tools.onnx_backend import Backend

Array = NDArray[Any]
Nodes = list[tuple[str, str, str]]
"""Operator, operands and results."""
ROWS, KEYS, SIZE = 5, 7, 16
TYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PLAIN: Nodes = [("Softmax", "x", "p"), ("MatMul", "p v", "y")]
GUARDED: Nodes = [
    ("Softmax", "x", "p"), ("IsNaN", "p", "none"), ("Where", "none zero p", "safe"), ("MatMul", "safe v", "y")
]  # fmt: skip
CHOSEN: Nodes = [("Softmax", "x", "p"), ("Where", "shut zero p", "safe"), ("MatMul", "safe v", "y")]
IN_OTHER_ROWS: Nodes = [("Softmax", "x", "p"), ("Reshape", "p shape", "r"), ("MatMul", "r v", "y")]


def exact(x: Array, v: Array, shut: Array) -> Array:
    """In float64, for what no weight is rounded."""
    e = np.exp(x.astype(np.float64) - x.astype(np.float64).max(-1, keepdims=True))
    weights = np.where(shut, 0, e / e.sum(-1, keepdims=True))
    return weights @ v.astype(np.float64)


def run(nodes: Nodes, dtype: str, outputs: str = "y") -> tuple[dict[str, Array], dict[str, Array], dict[str, str]]:
    """What is fed, what the plan gives, and the type of what each op's launch writes."""
    random, kind = np.random.default_rng(3), TYPES[dtype]
    feed: dict[str, Array] = {
        "x": (2 * random.standard_normal((ROWS, KEYS))).astype(kind),
        "v": random.standard_normal((KEYS, SIZE)).astype(kind),
        "zero": np.zeros((), kind),
        "shut": np.arange(ROWS)[:, None] % 2 == 1,
        "shape": np.array([ROWS, KEYS]),
    }
    model = _model(nodes, feed, outputs.split())
    prepared = Backend.prepare(model)
    try:
        given = [feed[value.name] for value in model.graph.input]
        found = dict(zip(outputs.split(), prepared.run(given), strict=True))
        (phase,) = prepared.plan.phases
        return feed, found, {launch.op: phase.buffers[launch.operands[-1].index].dtype for launch in phase.launches}
    finally:
        prepared.close()


def _model(nodes: Nodes, feed: dict[str, Array], outputs: list[str]) -> onnx.ModelProto:
    used = {name for _, inputs, _ in nodes for name in inputs.split()}
    graph = helper.make_graph(
        [helper.make_node(op, inputs.split(), [y], name=y) for op, inputs, y in nodes],
        "weights",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
         for name, x in feed.items() if name in used - {"shape"}],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [helper.make_tensor("shape", TensorProto.INT64, [2], feed["shape"])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("nodes", [PLAIN, GUARDED, CHOSEN, IN_OTHER_ROWS])
def test_weights_that_only_a_product_reads_are_not_rounded(nodes: Nodes, dtype: str) -> None:
    feed, found, written = run(nodes, dtype)
    wanted = exact(feed["x"], feed["v"], feed["shut"] if nodes is CHOSEN else np.zeros((ROWS, 1), bool))
    np.testing.assert_array_equal(found["y"], wanted.astype(TYPES[dtype]))
    assert written["softmax"] == written["matmul"] == "float32"


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (PLAIN, "y p"),
        ([*PLAIN, ("Neg", "p", "z")], "y z"),
        ([("Softmax", "x", "p"), ("Mul", "p p", "w"), ("MatMul", "w v", "y")], "y"),
        ([("Softmax", "x", "p"), ("Less", "zero p", "seen"), ("Where", "seen p zero", "w"),
          ("MatMul", "w v", "y")], "y"),
        ([("LogSoftmax", "x", "p"), ("MatMul", "p v", "y")], "y"),
        ([("Softmax", "v", "p"), ("MatMul", "x p", "y")], "y"),
    ],
)  # fmt: skip
def test_what_others_see_or_what_is_computed_of_them_is(nodes: Nodes, outputs: str) -> None:
    _, _, written = run(nodes, "float16", outputs)
    assert written["softmax"] == written["matmul"] == "float16"


@pytest.mark.parametrize(("kind", "number", "dtype"), [(7, 100, np.int64), (6, 100, np.int32), (11, 1e302, np.float64)])
def test_weights_that_become_another_kind_of_number_are_converted(kind: int, number: float, dtype: Any) -> None:
    name = {np.int64: "int64", np.int32: "int32", np.float64: "double"}[dtype]
    ends = f"(float16[5,5] x, {name}[5,3] v) => ({name}[5,3] y)"
    text = f"cast {ends} {{ p = Softmax(x) w = Cast<to={kind}>(p) y = MatMul(w,v) }}"
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
    x, v = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float16), np.full((5, 3), number, dtype)
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "v": v})
    prepared = Backend.prepare(model)
    try:
        np.testing.assert_allclose(prepared.run([x, v])[0], np.asarray(wanted), rtol=1e-3)
    finally:
        prepared.close()
