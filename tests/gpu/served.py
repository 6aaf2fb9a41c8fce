"""How do tests get plans for this machine's GPU, and answers from them and from transformers on the same weights?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hjgc.compiler import compile_model
from hjgc.models.export import export_model
from hjgc.runtime.backends.cuda_driver import Driver
from tests.models.checkpoints import write_checkpoint

DEMO = Path(__file__).parents[2] / "models" / "demo"
Rows = list[np.ndarray[Any, Any]]


@cache
def target() -> str:
    driver = Driver()
    driver.close()
    return driver.target


@cache
def _home() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="hjgc-gpu-")


@cache
def checkpoint(variant: str, dtype: str) -> Path:
    """A folder with a checkpoint and its `model.onnx`; `demo` is the trained model."""
    folder = Path(_home().name) / f"{variant}-{dtype}"
    if variant == "demo":
        folder.mkdir()
        export_model(DEMO, folder / "model.onnx", link="copy")
        return folder
    write_checkpoint(folder, variant=variant, dtype=dtype, seed=5, hidden_size=256, head_dim=64, intermediate_size=704)
    export_model(folder, folder / "model.onnx")
    return folder


@cache
def plan(variant: str, dtype: str = "float16", context: int = 1024) -> Path:
    """A plan for this GPU, beside its weights."""
    folder = checkpoint(variant, dtype)
    path = folder / f"{dtype}-{context}.hjg"
    options: dict[str, Any] = {"targets": (target(),), "dtype": dtype, "context": context, "portable": False}
    return compile_model(folder / "model.onnx", path, **options).path


@cache
def judge(variant: str, weights: str, compute: str) -> Any:
    """transformers on the GPU, computing in `compute`."""
    from transformers import AutoModelForCausalLM

    folder = DEMO if variant == "demo" else checkpoint(variant, weights)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, compute))
    return model.to("cuda").eval()


def prompt(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([length, seed]).integers(3, vocabulary, length).tolist()


@torch.no_grad()
def judged(model: Any, ids: list[int], forced: list[int]) -> Rows:
    """The logits after the prompt and after each of the forced tokens, in float32."""
    out = model(torch.tensor([ids + forced], device="cuda"))
    return list(out.logits[0, len(ids) - 1 :].float().cpu().numpy())


def answered(session: Any, ids: list[int], steps: int, **sampling: float) -> tuple[Rows, list[int]]:
    """Our logits and tokens: of the prompt, then of each step."""
    with session.request(logits=True) as request:
        tokens = [request.prefill(ids, sampling)]
        rows = [request.logits()]
        for _ in range(steps):
            tokens.append(request.decode())
            rows.append(request.logits())
    return rows, tokens


def bits(session: Any, length: int, steps: int = 4, vocabulary: int = 199, **sampling: float) -> bytes:
    """Logits and tokens of an answer, as bytes."""
    rows, tokens = answered(session, prompt(length, vocabulary), steps, **sampling)
    return b"".join(row.tobytes() for row in rows) + np.array(tokens).tobytes()
