"""How do tests get attention whose queries, keys and values are one product, as models and exporters write it?"""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional

HEADS, SIZE, MOST_ROWS = 4, 16, 512
WIDTH = HEADS * SIZE
WAYS = ("unbound", "in chunks", "split", "by torch's module")
EXPORTERS = ("dynamo", "TorchScript")
FORMS = [
    (way, exporter, open_sizes)
    for way in WAYS
    for exporter in EXPORTERS
    for open_sizes in (False, True)
    if (way, exporter, open_sizes) != ("by torch's module", "TorchScript", True)
]
"""All but the one in which torch writes the number of rows that it saw into the file."""


class Packed(torch.nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.together, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.module = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "by torch's module":
            return self.module(x, x, x, need_weights=False)[0]
        batch, rows, _ = x.shape
        made = self.together(x)
        if self.way == "unbound":
            query, key, value = made.reshape(batch, rows, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = made.chunk(3, -1) if self.way == "in chunks" else made.split(WIDTH, dim=2)
            query, key, value = (part.view(batch, rows, HEADS, SIZE).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).reshape(batch, rows, WIDTH))


@cache
def _home() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="hjgc-packed-")


@cache
def exported(way: str, exporter: str, *, open_sizes: bool, dtype: torch.dtype = torch.float32) -> Path:
    """`x` [1, rows, WIDTH] to as much; with `open_sizes` any number of rows, else 10."""
    folder = Path(_home().name) / f"{len(list(Path(_home().name).iterdir()))}"
    folder.mkdir()
    dynamo = exporter == "dynamo"
    options: dict[str, Any] = {"opset_version": 18 if dynamo else 17, "input_names": ["x"], "dynamo": dynamo}
    if open_sizes and dynamo:
        options["dynamic_shapes"] = {"x": {1: torch.export.Dim("rows", min=2, max=MOST_ROWS)}}
    elif open_sizes:
        options["dynamic_axes"] = {"x": {1: "rows"}}
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        x = torch.zeros(1, 10, WIDTH, dtype=dtype)
        torch.onnx.export(Packed(way).eval().to(dtype), (x,), str(folder / "model.onnx"), **options)
    return folder / "model.onnx"
