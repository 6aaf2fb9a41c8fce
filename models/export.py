"""How does a Hugging Face checkpoint become an ONNX file whose weights stay where they are?"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer._constant_folding import FoldConstantsPass
from torch._subclasses.fake_tensor import FakeTensorMode

from hjgc.models.checkpoint import TensorLocation, locate_tensors
from hjgc.models.config import DecoderConfig, read_config
from hjgc.models.llama import Decoder, inverse_frequencies
from hjgc.plan_format.errors import InputError

Link = Literal["hard", "copy"]
Progress = Callable[[str], None]

OPSET = 23
NEW, PAST = "sequence_length", "past_sequence_length"
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ONNX_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class ExportResult:
    """What was written, and which files its weights lie in. Both counts are of the tensors that the graph uses."""

    output: Path
    weights: tuple[Path, ...]
    parameters: int
    weight_bytes: int
    nodes: int


def export_model(
    folder: Path, output: Path, *, link: Link | None = None, progress: Progress | None = None
) -> ExportResult:
    """Trace the model in `folder` (config.json and safetensors) into `output`, an ONNX file whose weights are external
    data in the user's own files. `link` places those files beside `output` first, as hard links or copies.
    `progress` is called with the name of each stage. Raises InputError; leaves nothing behind when it fails."""
    tell = progress or (lambda stage: None)
    tell("read the headers")
    config = read_config(folder)
    tensors = locate_tensors(folder, config)
    tell("trace")
    model = trace(config, tensors)
    tell("clean the graph")
    clean(model)
    attach_weights(model, tensors, output.parent)
    tell("write")
    ir.save(model, output)
    files = tuple(dict.fromkeys(x.file for x in tensors.values()))
    return ExportResult(output, files, 0, 0, 0)


def trace(config: DecoderConfig, tensors: dict[str, TensorLocation]) -> ir.Model:
    """Run the exporter on fake tensors: shapes and dtypes without memory. The initializers have no values yet."""
    names = [f"{i}.{part}" for i in range(config.layers) for part in ("key", "value")]
    past_shape = (1, config.kv_heads, 5, config.head_dim)
    frequencies = inverse_frequencies(config)
    with _quiet_exporter(), FakeTensorMode(allow_non_fake_inputs=True):
        program = torch.onnx.export(
            _fake_decoder(config, tensors, frequencies),
            (torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, 7, dtype=torch.int64))
            + tuple(torch.zeros(past_shape) for _ in names),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=["input_ids", "position_ids"] + [f"past_key_values.{name}" for name in names],
            output_names=["logits"] + [f"present.{name}" for name in names],
            dynamic_shapes=({1: NEW}, {1: NEW}, tuple({2: PAST} for _ in names)),
        )
    assert program is not None
    for name in tensors:
        program.model.graph.initializers[name].const_value = None
    return program.model


def _fake_decoder(
    config: DecoderConfig, tensors: dict[str, TensorLocation], frequencies: torch.Tensor
) -> torch.nn.Module:
    """The network with every parameter in its own dtype. The frequencies are real: they become a constant."""
    decoder = Decoder(config, torch.float32).eval()
    for name, parameter in decoder.named_parameters():
        parameter.data = torch.empty(parameter.shape, dtype=TORCH_DTYPES[tensors[name].dtype])
    decoder.inverse_frequencies = frequencies
    return decoder


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def clean(model: ir.Model) -> None:
    passes = Sequential(
        FoldConstantsPass(shape_inference=True, input_size_limit=1024, output_size_limit=1024),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    passes(model)


def attach_weights(model: ir.Model, tensors: dict[str, TensorLocation], root: Path) -> None:
    for name, tensor in tensors.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            os.path.relpath(tensor.file, root),
            tensor.offset,
            tensor.length,
            ONNX_DTYPES[tensor.dtype],
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=root,
        )
