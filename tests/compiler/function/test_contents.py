"""Are numbers that follow from sizes alone found before anything runs?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from tests.compiler.function.one_node import ours, some

NUMBERS = {"two": 2, "three": 3}
SUMS: list[tuple[Sequence[tuple[str, list[str]]], int]] = [
    ([("Mod", ["three", "two"])], 1),
    ([("Neg", ["two"]), ("Add", ["0", "three"])], 1),
    ([("Max", ["two", "three", "two"])], 3),
    ([("Min", ["two", "three"])], 2),
    ([("Greater", ["three", "two"]), ("Where", ["0", "two", "three"])], 2),
    ([("Equal", ["three", "two"]), ("Not", ["0"]), ("Where", ["1", "two", "three"])], 2),
    (
        [
            ("Less", ["two", "two"]),
            ("LessOrEqual", ["two", "two"]),
            ("And", ["0", "1"]),
            ("Where", ["2", "two", "three"]),
        ],
        3,
    ),
]


@pytest.mark.parametrize(("sums", "wanted"), SUMS)
def test_a_shape_that_is_computed_from_numbers_is_known(sums: Sequence[tuple[str, list[str]]], wanted: int) -> None:
    nodes = [
        onnx.helper.make_node(op, [f"v{name}" if name.isdigit() else name for name in operands], [f"v{i}"])
        for i, (op, operands) in enumerate(sums)
    ]
    nodes.append(onnx.helper.make_node("Expand", ["x0", f"v{len(sums) - 1}"], ["y"]))
    numbers = [onnx.numpy_helper.from_array(np.array([number]), name) for name, number in NUMBERS.items()]
    x, y = onnx.helper.make_tensor_value_info("x0", 1, [1]), onnx.helper.make_tensor_value_info("y", 1, None)
    graph = onnx.helper.make_graph(nodes, "sums", [x], [y], numbers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    launches, (found,) = ours(model, [some(1)])
    assert launches == ["expand"]
    assert found.shape == (wanted,)
