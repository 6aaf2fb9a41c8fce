"""What is no decoder of ours becomes a function, unless somebody asked for one of the two?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hjgc.compiler import compile_model
from hjgc.compiler.errors import CallerError
from hjgc.plan_format.errors import CompileError
from hjgc.runtime.opening import load
from tests.compiler.dialects.fixtures import write_fixture
from tests.compiler.exports import changed, copy_of, with_host_function
from tests.compiler.test_recognise import ATTENTION, Change, attribute, planted
from tests.tools.command_line import CommandLine

OTHER: Change = attribute(f"{ATTENTION}/Attention", "softcap", 5.0)
"""Attention that no launch of ours computes."""


def test_a_decoder_that_no_rules_know_is_a_function_that_computes_the_same(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), OTHER)
    result = compile_model(model, tmp_path / "plan.hjg")
    assert "compiled as a function, not as a decoder" in result.notes[0]
    assert "softcap" in result.notes[0] or "causal attention" in result.notes[0]
    judge, random = onnxruntime.InferenceSession(model), np.random.default_rng(1)
    with load(result.path) as function:
        inputs = {
            port.name: random.standard_normal((1, 2, 3, 16), np.float32)
            if "past" in port.name
            else np.arange(3, 8)[None]
            for port in function.inputs
        }
        inputs["input_ids"] = random.integers(0, 199, (1, 5))
        expected = judge.run(None, inputs)
        found = function(inputs)
    for port, want in zip(function.outputs, expected, strict=True):
        assert np.abs(found[port.name] - want).max() < 1e-4


def test_whoever_asks_for_a_decoder_gets_the_reason_instead(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), OTHER)
    with pytest.raises(CompileError, match="causal attention"):
        compile_model(model, tmp_path / "plan.hjg", kind="decoder")
    assert not (tmp_path / "plan.hjg").exists()


def test_whoever_asks_for_a_function_gets_one_of_a_decoder_too(tmp_path: Path) -> None:
    plan = compile_model(copy_of("gqa", tmp_path), tmp_path / "plan.hjg", kind="function").plan
    assert [phase.name for phase in plan.phases] == ["call"]
    assert plan.islands == ()


def test_what_onnx_runtime_does_not_take_either_is_refused_as_a_decoder(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), planted("Magic", "com.acme"))
    with pytest.raises(CompileError, match=r"com\.acme") as caught:
        compile_model(model, tmp_path / "plan.hjg")
    assert str(caught.value.field).startswith("node planted/Magic")


def test_a_function_of_the_callers_that_cannot_be_called_is_an_error_in_any_case(tmp_path: Path) -> None:
    model = changed(copy_of("gqa", tmp_path), with_host_function("model.norm/RMSNormalization"))
    with pytest.raises(CallerError, match="expected logits"):
        compile_model(model, tmp_path / "plan.hjg")


def test_explain_says_what_a_decoder_without_a_cache_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(write_fixture("dynamo5-llama2-nocache", tmp_path))
    cap_scores(model.graph)
    onnx.save(model, tmp_path / "capped.onnx")
    result = compile_model(tmp_path / "capped.onnx", tmp_path / "plan.hjg")
    assert "compiled as a function" in result.notes[0]
    said = " ".join(CommandLine(capsys)("explain", tmp_path / "plan.hjg").out.split())
    assert "it keeps no cache: each further token is a call over the whole sequence" in said
    assert "a call, the largest there may be (" in said


def cap_scores(graph: onnx.GraphProto) -> None:
    """What goes into every softmax bounded, as in no attention of ours."""
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Softmax":
            capped = f"{node.input[0]}.capped"
            graph.node.insert(place, onnx.helper.make_node("Tanh", [node.input[0]], [capped], name=capped))
            node.input[0] = capped
