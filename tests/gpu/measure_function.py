"""How fast is a transformer encoder as a function, beside transformers and torch.compile, in one process?

    measure_function.py [--model bert|packed|vit|resnet] [--layers N] [--tokens N] [--calls N] [--peers MODE,...]

A BERT of random weights in float16 (bert-base by default: 12 layers, 768 wide, 12 heads), exported by torch's exporter
with fixed sizes, compiled for this GPU. Or `packed`, a vision transformer's blocks in its place, of the same shapes:
norms first, queries, keys and values one product; `vit`, ViT-B/16 of transformers, and `resnet`, its ResNet-50, over an
image of 224 by 224. Printed for each, as JSON lines: the median and the 99th percentile of a call, from token ids on
the host to its results on the host, and the median time on the device alone, between two events around one pass whose
inputs are there; how far the results are from those of the same weights in float32. MODE is `eager`, or one of
torch.compile's: `default`, `reduce-overhead` (CUDA graphs), `max-autotune`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

import hjgc
from hjgc.compiler import compile_model
from tests.gpu.served import target

WIDTH, HEADS, VOCABULARY = 768, 12, 30522
PEERS = ("eager", "default", "reduce-overhead", "max-autotune")
WARM = 20
Array = np.ndarray[Any, Any]
Call = Callable[[Array], Sequence[Array]]


class Encoder(torch.nn.Module):
    """BERT as a function of its token ids and its mask."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = BertModel(BertConfig(num_hidden_layers=layers)).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return found.last_hidden_state, found.pooler_output


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.together, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, rows, _ = x.shape
        made = self.together(self.first(x)).reshape(batch, rows, 3, HEADS, WIDTH // HEADS)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        found = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(found.transpose(1, 2).reshape(batch, rows, WIDTH))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class PackedEncoder(torch.nn.Module):
    """Blocks as a vision transformer has them, over embeddings of token ids."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = torch.nn.Sequential(*(Block() for _ in range(layers)))
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.norm(self.blocks(self.rows(input_ids) * attention_mask[..., None]))
        return found, found[:, 0]


class Vision(torch.nn.Module):
    """One of transformers' over an image."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the moments of what it has seen
        if norms:
            model.train()(pixel_values=torch.randn(4, 3, 224, 224))
        model.eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.model(pixel_values=pixel_values)
        return found.last_hidden_state, found.pooler_output


def main() -> None:
    given = arguments()
    random = np.random.default_rng(0)
    if given.model in ("vit", "resnet"):
        torch.manual_seed(0)
        model = Vision(ViTModel(ViTConfig()) if given.model == "vit" else ResNetModel(ResNetConfig()))
        inputs, beside = random.standard_normal((given.calls, 1, 3, 224, 224)).astype(np.float16), ()
    else:
        model = Encoder(given.layers) if given.model == "bert" else PackedEncoder(given.layers)
        inputs = random.integers(5, 30000, (given.calls, 1, given.tokens))
        beside = (np.ones_like(inputs[0]),)
    with torch.inference_mode():
        expected = reference(model, inputs[:3], beside)
        model = model.half()
        ours(model, inputs, beside, expected)
        device = model.cuda()
        for mode in given.peers.split(",") if given.peers else ():
            peer(device, mode, inputs, beside, expected)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("bert", "packed", "vit", "resnet"), default="bert")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--peers", default=",".join(PEERS))
    return parser.parse_args()


def reference(model: torch.nn.Module, inputs: Array, beside: tuple[Array, ...]) -> list[list[Array]]:
    """The results in float32."""
    device = model.cuda()
    found = [device(*map(wide, (row, *beside))) for row in inputs]
    model.cpu()
    return [[y.cpu().numpy() for y in row] for row in found]


def wide(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array).cuda()


def ours(model: torch.nn.Module, inputs: Array, beside: tuple[Array, ...], expected: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, plan = Path(folder) / "model.onnx", Path(folder) / "plan.hjg"
        example = tuple(map(torch.from_numpy, (inputs[0], *beside)))
        torch.onnx.export(model, example, path, dynamo=True, external_data=True)
        begun = time.perf_counter()
        compile_model(path, plan, targets=(target(),), kind="function", portable=False)
        say("compile", seconds=round(time.perf_counter() - begun, 1))
        begun = time.perf_counter()
        with hjgc.load(plan, device="cuda") as function:
            names = [port.name for port in function.inputs]

            def call(row: Array) -> list[Array]:
                return list(function(dict(zip(names, (row, *beside), strict=True))).values())

            loaded = time.perf_counter()
            call(inputs[0])
            say("hjgc, first call", milliseconds=round(1e3 * (time.perf_counter() - loaded), 3),
                load_seconds=round(loaded - begun, 2))  # fmt: skip
            say("hjgc, launch by launch", **timed(call, inputs), **apart(call, inputs, expected))
            function.wait_captured(60)
            say("hjgc", **timed(call, inputs), **apart(call, inputs, expected))
            say("hjgc, on the device", milliseconds=on_device(function))
            report = function.report()
            kinds = [entry["kind"] for entry in report["segments"]]
            launches = [entry["launches"] for entry in report["segments"]]
            say("segments", kinds=kinds, launches=launches, totals=report["totals"])


def on_device(function: Any) -> float:
    """Milliseconds of one pass as one graph, the inputs being there: the median."""
    backend, phase = function.backend, function.plan.phase("call")
    graph = backend.build("call", range(len(phase.launches)), ())
    times: list[float] = []
    for _ in range(100):
        marks = [backend.mark()]
        backend.replay(graph, ())
        marks.append(backend.mark())
        times.append(backend.milliseconds(*marks))
        backend.drop_marks(marks)
    backend.release(graph)
    return round(float(np.median(times)), 4)


def peer(model: torch.nn.Module, mode: str, inputs: Array, beside: tuple[Array, ...], expected: Any) -> None:
    torch.compiler.reset()
    ready: Any = model if mode == "eager" else torch.compile(model, mode=mode)
    fixed = [torch.from_numpy(array).cuda() for array in beside]

    def call(row: Array) -> list[Array]:
        torch.compiler.cudagraph_mark_step_begin()
        found = ready(torch.from_numpy(row).cuda(non_blocking=True), *fixed)
        return [y.cpu().numpy() for y in found]

    begun = time.perf_counter()
    for row in inputs[:5]:
        call(row)
    say(f"torch {mode}, first calls", seconds=round(time.perf_counter() - begun, 1))
    say(f"torch {mode}", **timed(call, inputs), **apart(call, inputs, expected))
    row = torch.from_numpy(inputs[0]).cuda()
    times: list[float] = []
    for _ in range(100):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.compiler.cudagraph_mark_step_begin()
        start.record()
        ready(row, *fixed)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    say(f"torch {mode}, on the device", milliseconds=round(float(np.median(times)), 4))


def timed(call: Call, inputs: Array) -> dict[str, float]:
    """Milliseconds of calls one after the other."""
    for row in inputs[:WARM]:
        call(row)
    times: list[float] = []
    for row in inputs:
        begun = time.perf_counter()
        call(row)
        times.append(1e3 * (time.perf_counter() - begun))
    return {"median": round(float(np.median(times)), 4), "p99": round(float(np.percentile(times, 99)), 4)}


def apart(call: Call, inputs: Array, expected: Any) -> dict[str, float]:
    """The largest difference from float32, over all results."""
    differences = [
        float(np.abs(np.asarray(y, np.float32) - want).max())
        for row, wanted in zip(inputs, expected, strict=False)
        for y, want in zip(call(row), wanted, strict=True)
    ]
    return {"apart": round(max(differences), 5)}


def say(what: str, **numbers: Any) -> None:
    print(json.dumps({"what": what, **numbers}), flush=True)


if __name__ == "__main__":
    main()
