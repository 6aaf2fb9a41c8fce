"""Does a mixture of experts become a decoder whose routing is dynamic and all else captured?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers

from hjgc.compiler import CompileResult, compile_model
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment, StaticSegment
from tests.compiler.dialects.judging import STEPS, compared, judge_of
from tests.exporters.flat import example

TOLERANCE = 1e-4
"""Of logits up to 3: sums of float32 in another order."""
CONFIG: dict[str, Any] = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "num_local_experts": 4,
    "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip


@cache
def home() -> TemporaryDirectory[str]:
    """Removed when the process ends."""
    return TemporaryDirectory(prefix="hjgc-mixture-")


@cache
def exported() -> Path:
    """Mixtral with random weights, as `torch.onnx.export` writes it."""
    torch.manual_seed(0)
    model: Any = transformers.MixtralForCausalLM(transformers.MixtralConfig(**CONFIG)).eval()
    model.set_experts_implementation("batched_mm")  # without loops over experts
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    given = example(model)
    with torch.no_grad():
        program = torch.onnx.export(
            given.wrapper, given.tensors, dynamo=True, input_names=given.names, output_names=given.outputs,
            dynamic_shapes=(given.axes,), external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    path = Path(home().name) / "model.onnx"
    program.save(str(path), external_data=False)
    return path


@cache
def compiled() -> CompileResult:
    model = exported()
    return compile_model(model, model.with_name("plan.hjg"), context=100, prompt=(1, 64), kind="decoder")


def test_its_logits_are_onnx_runtimes_over_a_prompt_and_what_follows() -> None:
    run = compared(compiled(), judge_of(exported(), compiled().plan), TOLERANCE)
    assert run.first_different(TOLERANCE) is None
    assert len(run.results) == STEPS + 1


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_experts_are_chosen_in_dynamic_segments_and_the_rest_is_static(phase: str) -> None:
    segments = compiled().plan.phase(phase).schedule().segments
    kinds = [StaticSegment, DynamicSegment, StaticSegment, DynamicSegment, StaticSegment]
    assert [type(segment) for segment in segments] == kinds
    for segment in segments[1::2]:
        assert isinstance(segment, DynamicSegment)
        first = segment.reasons[0]
        assert first.code is ReasonCode.DATA_DEPENDENT_ADDRESS
        assert any("is chosen by ONNX node" in step and "TopK" in step for step in first.chain)
        assert len(segment.launches) == 1
