"""Is what an island takes declared as far as it is known, so that ONNX Runtime can infer what is inside?"""

from __future__ import annotations

from pathlib import Path

import onnx

from hjgc.compiler import compile_model
from hjgc.runtime.opening import open_plan

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
choice (bool which, float scalar, float[N,4] matrix) => (y) {
    root = Sqrt(scalar)
    rows = Exp(matrix)
    y = If (which) <then_branch = yes () => (a) { a = Mul(root, rows) },
                    else_branch = no () => (b) { b = Add(root, rows) }>
}"""


def test_a_scalar_has_no_axes_and_a_matrix_those_that_are_numbers(tmp_path: Path) -> None:
    onnx.save_model(onnx.parser.parse_model(MODEL), tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", tmp_path / "plan.hjg", kind="function")
    opened = open_plan(tmp_path / "plan.hjg")
    (island,) = opened.file.plan.islands
    section = bytes(opened.file.section("islands"))
    opened.file.close()
    graph = onnx.load_from_string(section[island.offset : island.offset + island.length]).graph
    _, root, rows = (value.type.tensor_type for value in graph.input)
    assert root.HasField("shape")
    assert list(root.shape.dim) == []
    assert [axis.dim_value for axis in rows.shape.dim] == [0, 4]
