"""What do ONNX Runtime and transformers compute for the same tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]


def some_tokens(count: int, vocabulary: int = 199, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(0, vocabulary, (1, count))


def onnx_logits(model: Path, tokens: Tokens, steps: Sequence[int]) -> Logits:
    """Feed `tokens` in steps of the given lengths, each with the cache that the one before gave; all logits [S,V]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    past = {
        item.name: np.zeros([size if isinstance(size, int) else 0 for size in item.shape], np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past_key_values.")
    }
    logits: list[Logits] = []
    for stop, step in zip(np.cumsum(steps), steps, strict=True):
        positions = np.arange(stop - step, stop)[None]
        feeds = {"input_ids": tokens[:, stop - step : stop], "position_ids": positions}
        first, *present = (np.asarray(output) for output in session.run(None, feeds | past))
        past = dict(zip(past, present, strict=True))
        logits.append(first[0])
    return np.concatenate(logits)


def transformers_logits(folder: Path, tokens: Tokens) -> Logits:
    """The judge, in float32 whatever the checkpoint's dtype, all tokens at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits[0].numpy()
