"""Are chains of elementwise launches one launch, and is what comes of them the same?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hjgc.compiler import compile_model
from hjgc.plan_format.structs import Launch, Plan
from hjgc.runtime.opening import load

FLOAT = TensorProto.FLOAT


def compiled(nodes: Sequence[onnx.NodeProto], folder: Path, outputs: Sequence[str] = ("y",)) -> Plan:
    """A model of these nodes, which take `a` and `b` [n, 4] and `row` [4]."""
    inputs = [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in "ab"]
    inputs.append(helper.make_tensor_value_info("row", FLOAT, [4]))
    results = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", inputs, results), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, folder / "model.onnx")
    return compile_model(folder / "model.onnx", folder / "plan.hjg", kind="function").plan


def launches(plan: Plan) -> tuple[Launch, ...]:
    return plan.phase("call").launches


def given() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "a": random.random((3, 4), np.float32),
        "b": random.random((3, 4), np.float32),
        "row": np.arange(4, dtype=np.float32),
    }


def node(operator: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=f"n.{output}")


def test_a_chain_is_one_launch_of_all_its_nodes(tmp_path: Path) -> None:
    plan = compiled([node("Add", "a b", "s"), node("Tanh", "s", "t"), node("Mul", "t a", "y")], tmp_path)
    (launch,) = launches(plan)
    assert launch.attributes["expression"] == "mul(tanh(add(x0, x1)), x0)"
    with load(tmp_path / "plan.hjg") as function:
        x = given()
        assert np.allclose(function(x)["y"], np.tanh(x["a"] + x["b"]) * x["a"], atol=1e-6)


def test_two_chains_that_meet_are_one_launch(tmp_path: Path) -> None:
    plan = compiled([node("Exp", "a", "s"), node("Neg", "b", "t"), node("Add", "s t", "y")], tmp_path)
    assert [launch.attributes["expression"] for launch in launches(plan)] == ["add(exp(x0), neg(x1))"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "count"),
    [
        ([("Exp", "a", "s"), ("Add", "s s", "y")], ("y",), 2),  # read twice
        ([("Exp", "a", "s"), ("Neg", "s", "y")], ("y", "s"), 2),  # an output of the model too
        ([("Exp", "row", "s"), ("Add", "a s", "y")], ("y",), 2),  # would be computed once for each row
        ([("Exp", "a", "s"), ("MatMul", "s row", "y")], ("y",), 3),  # read by something else
    ],
)
def test_what_somebody_else_reads_or_what_would_be_computed_again_stays_apart(
    nodes: list[tuple[str, str, str]], outputs: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    plan = compiled([node(*each) for each in nodes], tmp_path, outputs)
    assert len(launches(plan)) == count


def test_a_chain_past_the_limit_is_several_launches(tmp_path: Path) -> None:
    names = ["a", *(f"v{i}" for i in range(99)), "y"]
    chain = [node("Sin", before, after) for before, after in pairwise(names)]
    plan = compiled(chain, tmp_path)
    assert [str(launch.attributes["expression"]).count("sin") for launch in launches(plan)] == [48, 48, 4]
