"""Does a plan say what transformers says, at every step, for every kind of network we claim?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hjgc.compiler import compile_model
from hjgc.models.export import export_model
from hjgc.runtime.opening import open_session
from tests.models.checkpoints import write_checkpoint

ROOT = Path(__file__).parent.parent
VARIANTS = ("mha", "gqa", "tied", "bias", "qknorm", "llama3rope")
PROMPTS = (1, 7, 16, 17, 100, 500)
STEPS = 64
TOLERANCE = 1e-4


def compiled(folder: Path, **options: Any) -> Path:
    export_model(folder, folder / "model.onnx")
    return compile_model(folder / "model.onnx", folder / "plan.hjg", **options).path


def judge(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def reference_logits(model: Any, ids: list[int], steps: int) -> list[np.ndarray[Any, Any]]:
    """The logits of the last prompt token and of each greedy step after it."""
    rows: list[np.ndarray[Any, Any]] = []
    tokens, cache = torch.tensor([ids]), None
    with torch.no_grad():
        for _ in range(steps + 1):
            out = model(tokens, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1].float().numpy())
            tokens = torch.tensor([[int(rows[-1].argmax())]])
    return rows


def our_logits(session: Any, ids: list[int], steps: int) -> tuple[list[np.ndarray[Any, Any]], list[int]]:
    with session.request(logits=True) as request:
        tokens = [request.prefill(ids, {})]
        rows = [request.logits()]
        for _ in range(steps):
            tokens.append(request.decode())
            rows.append(request.logits())
    return rows, tokens


def assert_agree(plan: Path, model: Any, vocabulary: int, prompts: tuple[int, ...] = PROMPTS) -> None:
    rng = np.random.default_rng(7)
    with open_session(plan) as session:
        for length in prompts:
            ids = rng.integers(3, vocabulary, length).tolist()
            wanted = reference_logits(model, ids, STEPS)
            rows, tokens = our_logits(session, ids, STEPS)
            for step, (want, row) in enumerate(zip(wanted, rows, strict=True)):
                assert np.abs(want - row).max() <= TOLERANCE, f"prompt {length}, step {step}"
            assert tokens == [int(row.argmax()) for row in wanted], f"prompt {length}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, variant=variant, seed=3)
    assert_agree(compiled(tmp_path), judge(tmp_path), 199)


def test_the_demo_model_is_that_of_transformers(tmp_path: Path) -> None:
    folder = ROOT / "models" / "demo"
    export_model(folder, tmp_path / "model.onnx", link="copy")
    plan = compile_model(tmp_path / "model.onnx", tmp_path / "plan.hjg").path
    model = judge(folder)
    assert_agree(plan, model, model.config.vocab_size)


def test_a_prompt_longer_than_the_largest_bucket_runs_in_chunks_to_the_same_logits(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, variant="gqa", seed=4)
    plan = compiled(tmp_path, prompt=(1, 64))
    assert_agree(plan, judge(tmp_path), 199, prompts=(64, 65, 200, 500))


def test_a_bfloat16_checkpoint_compiles_and_runs_in_float32_and_in_its_own_type(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, variant="gqa", dtype="bfloat16", seed=5)
    model = judge(tmp_path)
    assert_agree(compiled(tmp_path), model, 199, prompts=(7, 100))
    half = compile_model(tmp_path / "model.onnx", tmp_path / "half.hjg", dtype="bfloat16").path
    ids = np.random.default_rng(1).integers(3, 199, 17).tolist()
    wanted = reference_logits(model, ids, 0)[0]
    with open_session(half) as session:
        rows, _ = our_logits(session, ids, 0)
    assert np.abs(rows[0] - wanted).max() / np.abs(wanted).max() < 0.05


def test_a_folder_compiles_directly_to_the_logits_of_its_exported_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, variant="tied", seed=6)
    direct = compile_model(tmp_path, tmp_path / "direct.hjg").path
    ids = [5, 6, 7, 8]
    with open_session(direct) as one, open_session(compiled(tmp_path)) as other:
        for left, right in zip(our_logits(one, ids, 3)[0], our_logits(other, ids, 3)[0], strict=True):
            assert np.array_equal(left, right)
