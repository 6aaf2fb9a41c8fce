"""How do tests get a transformer encoder as exporters write it: a BERT of random weights, small?"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.transformers import optimizer
from transformers import BertConfig, BertModel

LAYERS, VOCABULARY, MOST_TOKENS = 2, 100, 512
SIZES = {"tokens": (2, MOST_TOKENS)}
FORMS: dict[str, tuple[str, bool, int]] = {
    "sdpa, by torch's exporter": ("sdpa", True, 18),
    "eager, by torch's exporter": ("eager", True, 18),
    "with the operator Attention": ("sdpa", True, 23),
    "by TorchScript's exporter": ("eager", False, 17),
}
"""How attention is written in Python, whether torch's own exporter writes the file, and its opset."""


class Encoder(torch.nn.Module):
    """BERT as a function of its token ids and its mask."""

    def __init__(self, attention: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
            intermediate_size=160, max_position_embeddings=MOST_TOKENS,
        )  # fmt: skip
        self.bert = BertModel(config).eval()
        self.bert.config._attn_implementation = attention  # type: ignore[attr-defined] (what chooses it)
        for parameter in self.bert.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        self.bert.to(dtype)  # type: ignore[call-arg] (what every module has)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.bert(input_ids=ids, attention_mask=mask)
        return found.last_hidden_state, found.pooler_output


@cache
def _home() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="hjgc-encoders-")


@cache
def exported(form: str, dtype: torch.dtype, *, open_sizes: bool) -> Path:
    """The model's file; with `open_sizes` any number of tokens."""
    attention, dynamo, opset = FORMS[form]
    folder = Path(_home().name) / f"{len(list(Path(_home().name).iterdir()))}"
    folder.mkdir()
    path, ids = folder / "model.onnx", torch.zeros(1, 16, dtype=torch.int64)
    options: dict[str, Any] = {"opset_version": opset, "input_names": ["ids", "mask"], "dynamo": dynamo}
    if open_sizes and dynamo:
        tokens = torch.export.Dim("tokens", min=2, max=MOST_TOKENS)
        options["dynamic_shapes"] = {"ids": {1: tokens}, "mask": {1: tokens}}
    elif open_sizes:
        options["dynamic_axes"] = {"ids": {1: "tokens"}, "mask": {1: "tokens"}}
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(Encoder(attention, dtype), (ids, torch.ones_like(ids)), str(path), **options)
    return path


def example(tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    """Token ids, and a mask that leaves out the last of them."""
    ids = np.random.default_rng(tokens).integers(0, VOCABULARY, (1, tokens))
    mask = np.ones_like(ids)
    mask[:, max(1, tokens * 3 // 4) :] = 0
    return {"ids": ids, "mask": mask}


def optimized(form: str, how: str, folder: Path) -> Path:
    """Of float32 and any number of tokens, as ONNX Runtime's `session` leaves it, or its optimizer for `transformers`;
    that gives token ids and masks of int32."""
    model, path = exported(form, torch.float32, open_sizes=True), folder / "optimized.onnx"
    if how == "session":
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        options.log_severity_level = 3
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    else:
        logging.getLogger("onnxruntime").setLevel(logging.ERROR)
        found = optimizer.optimize_model(str(model), "bert", num_heads=4, hidden_size=64, opt_level=0)
        found.save_model_to_file(str(path))
    return path
