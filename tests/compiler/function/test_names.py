"""Do names in a file that look like ours change what is computed?"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hjgc.tools.onnx_backend import PreparedModel

FLOAT = TensorProto.FLOAT


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], initializers: dict[str, np.ndarray]
) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "names",
            [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info("out", FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def floats(numbers: Any) -> NDArray[Any]:
    return np.array(numbers, np.float32)


ONE = floats([[1, 2, 3]])
CASES = {
    "an argument called as a launch's result": model(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("Softmax", ["r"], ["s"], name="soft"),
            helper.make_node("MatMul", ["s", "relu.y0"], ["out"], name="last"),
        ],
        {"x": [2, 3], "relu.y0": [3, 3]},
        {},
    ),
    "an argument called as a view": model(
        [
            helper.make_node("Softmax", ["x"], ["s"], name="n"),
            helper.make_node("Reshape", ["s", "shape"], ["v"], name="view"),
            helper.make_node("MatMul", ["v", "n.y0.view"], ["out"], name="last"),
        ],
        {"x": [2, 3], "n.y0.view": [2, 4]},
        {"shape": np.array([3, 2], np.int64)},
    ),
    "an initializer called as numbers that were folded": model(
        [
            helper.make_node("Shape", ["x"], ["s"], name="shape"),
            helper.make_node("Cast", ["s"], ["f"], name="cast", to=FLOAT),
            helper.make_node("ReduceSum", ["f"], ["total"], name="sum", keepdims=0),
            helper.make_node("ReduceSum", ["s~2"], ["more"], name="sum2", keepdims=0),
            helper.make_node("Add", ["total", "more"], ["out"], name="add"),
        ],
        {"x": [2, 3]},
        {"s~2": floats([50, 50])},
    ),
    "an initializer called as another in another shape": model(
        [
            helper.make_node("Reshape", ["w", "shape"], ["v"], name="view"),
            helper.make_node("MatMul", ["v", "x"], ["a"], name="product"),
            helper.make_node("Add", ["a", "w~2"], ["out"], name="add"),
        ],
        {"x": [1, 2]},
        {"w": ONE, "w~2": floats([[101], [102], [103]]), "shape": np.array([3, 1], np.int64)},
    ),
    "a bias called as its layer": model(
        [
            helper.make_node("Exp", ["x"], ["e"], name="layer1"),
            helper.make_node("Add", ["e", "layer1.bias"], ["out"], name="add"),
        ],
        {"x": [2, 3]},
        {"layer1.bias": ONE},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_file_says(case: str) -> None:
    given = CASES[case]
    session = onnxruntime.InferenceSession(given.SerializeToString())
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    inputs = {name: np.random.default_rng(len(name)).random(shape, np.float32) for name, shape in shapes.items()}
    prepared = PreparedModel(given)
    try:
        (found,) = prepared.run(inputs)
        (expected,) = session.run(None, inputs)
        np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-5)
    finally:
        prepared.close()


def test_a_fused_launch_leaves_none_behind() -> None:
    prepared = PreparedModel(CASES["a bias called as its layer"])
    launches = prepared.plan.phase("call").launches
    prepared.close()
    assert [launch.attributes["expression"] for launch in launches] == ["add(exp(x1), x0)"]
