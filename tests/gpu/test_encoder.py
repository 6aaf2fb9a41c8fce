"""On the GPU, does a transformer encoder as a function give ONNX Runtime's numbers, and the same bits as a graph?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import hjgc
from hjgc.compiler import compile_model
from tests.encoders import FORMS, LAYERS, SIZES, example, exported
from tests.gpu.served import target

LENGTHS = (2, 7, 16, 33, 128, 300)
FORM = "sdpa, by torch's exporter"
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3}
"""Of results around 1."""


@cache
def plan(form: str, dtype: torch.dtype) -> Path:
    model = exported(form, dtype, open_sizes=True)
    path = model.with_name("plan.hjg")
    return compile_model(model, path, targets=(target(),), kind="function", sizes=SIZES, portable=False).path


@cache
def expected(form: str, tokens: int) -> list[np.ndarray[Any, Any]]:
    """In float32, by ONNX Runtime."""
    session = ort.InferenceSession(str(exported(form, torch.float32, open_sizes=True)))
    return [np.asarray(y) for y in session.run(None, example(tokens))]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("form", "dtype"), [*((form, torch.float32) for form in FORMS), (FORM, torch.float16)], ids=str
)
def test_results_are_onnx_runtimes_and_graphs_give_the_same_bits(form: str, dtype: torch.dtype) -> None:
    with hjgc.load(plan(form, dtype), device="cuda") as function:
        plain = {tokens: function(example(tokens)) for tokens in LENGTHS}
        assert function.wait_captured(120)
        for tokens in LENGTHS:
            again = function(example(tokens))
            for found, wanted, first in zip(
                again.values(), expected(form, tokens), plain[tokens].values(), strict=True
            ):
                assert np.abs(found.astype(np.float32) - wanted).max() < TOLERANCES[dtype]
                assert found.tobytes() == first.tobytes()
        report = function.report()
    states = [entry["state"] for entry in report["segments"]]
    assert states == ["PROMOTED"] * len(LENGTHS)
    assert report["islands"] is None


@pytest.mark.gpu
def test_nothing_waits_between_its_launches() -> None:
    """One static segment, each launch of which may start before the one before it has ended."""
    with hjgc.load(plan(FORM, torch.float16), device="cuda", capture=False) as function:
        (phase,) = function.plan.phases
    assert len(phase.schedule().segments) == 1
    assert {edge.kind for edge in phase.edges} == {"pdl"}
    assert len(phase.launches) <= 16 + 7 * LAYERS
