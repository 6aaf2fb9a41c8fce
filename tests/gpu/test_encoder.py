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
from tests import packed
from tests.encoders import FORMS, LAYERS, SIZES, example, exported, optimized
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


@pytest.mark.gpu
@pytest.mark.parametrize(("form", "how"), [(FORM, "session"), ("by TorchScript's exporter", "transformers")])
def test_what_onnx_runtimes_optimizers_leave_gives_its_numbers(form: str, how: str, tmp_path: Path) -> None:
    path = optimized(form, how, tmp_path)
    plan = tmp_path / "plan.hjg"
    compile_model(path, plan, targets=(target(),), kind="function", sizes=SIZES, portable=False)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    types = {x.name: np.int32 if x.type == "tensor(int32)" else np.int64 for x in session.get_inputs()}
    with hjgc.load(plan, weights=tmp_path, device="cuda") as function:
        assert not function.plan.islands
        for tokens in LENGTHS:
            feed = {name: x.astype(types[name]) for name, x in example(tokens).items()}
            for found, wanted in zip(function(feed).values(), session.run(None, feed), strict=True):
                assert np.abs(found - np.asarray(wanted)).max() < TOLERANCES[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize(("way", "exporter", "open_sizes"), packed.FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_heads_that_one_product_left_side_by_side(
    way: str, exporter: str, open_sizes: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, plan = packed.exported(way, exporter, open_sizes=open_sizes, dtype=dtype), tmp_path / "plan.hjg"
    sizes = {"rows": (2, packed.MOST_ROWS)} if open_sizes else None
    compile_model(model, plan, targets=(target(),), kind="function", sizes=sizes, portable=False)
    wide = packed.exported(way, exporter, open_sizes=open_sizes)
    session = ort.InferenceSession(str(wide), providers=["CPUExecutionProvider"])
    with hjgc.load(plan, weights=model.parent, device="cuda") as function:
        for rows in (2, 7, 45, 130) if open_sizes else (10,):
            x = np.random.default_rng(rows).standard_normal((1, rows, packed.WIDTH)).astype(np.float16)
            (found,) = function({"x": x.astype(np.float32 if dtype == torch.float32 else np.float16)}).values()
            (wanted,) = session.run(None, {"x": x.astype(np.float32)})
            assert np.abs(found.astype(np.float32) - np.asarray(wanted)).max() < TOLERANCES[dtype]
