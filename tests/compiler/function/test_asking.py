"""Are types that ONNX's inference leaves open known all the same, so that launches lie around an island?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import hjgc
from hjgc.compiler import compile_model
from hjgc.compiler.function import asking
from hjgc.plan_format.structs import Plan

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
BETWEEN = """between (float[N,4] x) => (float[N,4] y) {
    r = Exp(x) q = com.microsoft.QuickGelu(r) s = Neg(q) y = Abs(s)
}"""
BRANCH = """branch (float[N,4] x, bool go) => (float[N,4] y) {
    r = Exp(x)
    z = If(go) <
        then_branch = yes () => (float[N,4] u) { u = com.microsoft.QuickGelu(r) },
        else_branch = no () => (v) { v = com.microsoft.QuickGelu(r) }
    >
    s = Neg(z) y = Abs(s)
}"""
LARGE = 1 << 19
"""Weights past what lies inside of a sub-model."""


def compiled(text: str, folder: Path, **large: int) -> Plan:
    """The plan, once it gives what ONNX Runtime gives. `large`: weights of so many elements."""
    model = onnx.parser.parse_model(HEADER + text)
    for name, count in large.items():
        numbers = np.random.default_rng(1).standard_normal((4, count // 4)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, name))
    path = folder / "model.onnx"
    onnx.save_model(model, path)
    plan = compile_model(path, folder / "plan.hjg", targets=("cpu",), kind="function").plan
    feed: dict[str, Any] = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    feed |= {"go": np.array(True)} if "bool go" in text else {}
    feed |= {"shape": np.array([2, 6])} if "shape)" in text else {}
    (wanted,) = ort.InferenceSession(str(path)).run(None, feed)
    with hjgc.load(folder / "plan.hjg", device="cpu") as function:
        (found,) = function(feed).values()
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-5, atol=1e-6)
    return plan


def ops(plan: Plan) -> list[str]:
    return [launch.op for launch in plan.phases[0].launches]


@pytest.mark.parametrize("text", [BETWEEN, BRANCH])
def test_launches_lie_on_both_sides_of_an_island_whose_result_onnx_cannot_tell(text: str, tmp_path: Path) -> None:
    assert ops(compiled(text, tmp_path)) == ["elementwise", "island", "elementwise"]


UNRANKED = {
    "reshaped": "e = Reshape(q, shape) y = Relu(e)",
    "branches": """e = If(go) <
        then_branch = yes () => (u) { u = com.microsoft.QuickGelu(r) },
        else_branch = no () => (v) { k = com.microsoft.QuickGelu(r) v = ReduceSum <keepdims = 0> (k) }
    > y = Relu(e)""",
}


@pytest.mark.parametrize("how", UNRANKED)
def test_what_has_no_rank_that_is_known_is_not_taken_for_one_number(how: str, tmp_path: Path) -> None:
    text = f"""unranked (float[N,4] x, bool go, int64[K] shape) => (y) {{
        r = Exp(x) q = com.microsoft.QuickGelu(r) {UNRANKED[how]}
    }}"""
    compiled(text, tmp_path)


def test_weights_that_are_large_are_not_needed_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = BETWEEN.replace("y = Abs(s)", "y = MatMul(s, w)").replace(
        "=> (float[N,4] y)", f"=> (float[N,{LARGE // 4}] y)"
    )
    asked: list[int] = []
    question = asking._question
    monkeypatch.setattr(asking, "_question", lambda *given: (found := question(*given), asked.append(len(found)))[0])
    assert ops(compiled(text, tmp_path, w=LARGE)) == ["elementwise", "island", "elementwise", "matmul"]
    assert asked and asked[0] < 4096


@pytest.mark.parametrize("text", [BETWEEN, BRANCH])
def test_without_onnx_runtime_the_rest_is_one_island_with_what_it_reads(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "find_spec", lambda name: None)
    assert ops(compiled(text, tmp_path)) == ["elementwise", "island"]


def test_nothing_is_asked_where_all_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_question", lambda *given: pytest.fail("asked"))
    assert ops(compiled(BETWEEN.replace("com.microsoft.QuickGelu", "Relu"), tmp_path)) == ["elementwise"]
