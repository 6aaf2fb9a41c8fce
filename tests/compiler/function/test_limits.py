"""Is a model that no plan can hold told so in one line?"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from hjgc.compiler import compile_model
from hjgc.plan_format.errors import CompileError


def saved(folder: Path, axes: list[str], *, outputs: bool = True) -> Path:
    node = helper.make_node("Neg", ["x"], ["y"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)] if outputs else []
    graph = helper.make_graph([node], "graph", [given], made)
    path = folder / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("rank", [5, 8])
def test_open_axes_that_are_too_many_for_their_ranges(rank: int, tmp_path: Path) -> None:
    axes = [f"size{i}" for i in range(rank)]
    model = saved(tmp_path, axes)
    with pytest.raises(CompileError, match=r"at the largest sizes, found .*--size NAME=LOW:HIGH"):
        compile_model(model, tmp_path / "plan.hjg", kind="function")
    compile_model(model, tmp_path / "plan.hjg", kind="function", sizes=dict.fromkeys(axes, (0, 3)))


def test_a_model_without_outputs(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="found one without outputs"):
        compile_model(saved(tmp_path, ["n"], outputs=False), tmp_path / "plan.hjg", kind="function")
