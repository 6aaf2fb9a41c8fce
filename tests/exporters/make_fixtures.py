"""How does an exported model become a small file that keeps its dialect?

    python tests/exporters/make_fixtures.py .exporters/models tests/compiler/dialects

Each fixture is the graph as its exporter wrote it, gzipped, without the numbers of its weights: in their place stands
how to make some (`tests/compiler/dialects/fixtures.py`). All other numbers are the exporter's own.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

TABLES = ("inv_freq", "cos_cache", "sin_cache")
"""How the names end of float initializers that are no weights."""
POSITIONS = 128
"""Rows kept of tables of cosines and sines: more than a test has tokens."""
FEW = 8
"""Elements of what is never a weight: scalars, sizes, the smallest row of frequencies."""
PACKED = (TensorProto.UINT8, TensorProto.INT4)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

DYNAMO = (
    "llama2", "llama2-bf16", "llama2-eager", "llama2-fixedshape", "llama2-fp16", "llama2-inline", "llama2-nocache",
    "llama2-nocache-mask", "llama2-nomask", "llama2-noopt", "llama2-opset18", "llama2-opset23", "llama2-opset24",
    "llama2-prefill", "llama2-static", "llama3", "mistral", "mistral-nocache", "mistral-opset23", "mistral-static",
    "mistral-windowed", "qwen2", "qwen3", "qwen3-eager-opset23", "qwen3-fp16-opset23", "qwen3-nopos",
)  # fmt: skip
DYNAMO_5 = (
    "llama2-nocache", "llama2-opset23-nomask-nopos", "llama3", "mistral", "mistral-windowed", "qwen2", "qwen3",
    "qwen3-static",
)  # fmt: skip
TORCHSCRIPT = (
    "llama2", "llama2-fp16", "llama2-nocache", "llama2-nomask", "llama2-opset14", "llama3", "mistral", "qwen2", "qwen3",
    "qwen3-nopos",
)  # fmt: skip
OPTIMUM = (
    "llama2", "llama2-O2", "llama2-fp16", "llama2-merged/decoder_model_merged", "llama2-noconstfold", "llama2-nopast",
    "llama2-static", "llama3-merged/decoder_model_merged", "mistral", "qwen3",
)  # fmt: skip
GENAI_4 = (
    "llama2-cpu-fp32", "llama2-cpu-int4-asym", "llama2-cpu-int4-qdq", "llama2-cuda-fp16", "llama2-cuda-fp32",
    "llama2-cuda-int4", "llama3-cpu-int4-block128", "mistral-cpu-fp32", "qwen2-cpu-fp32", "qwen3-cpu-int4-kquant-mixed",
    "qwen3-cpu-int4-rtn", "qwen3-dml-fp16",
)  # fmt: skip
GENAI_5 = (
    "llama2-cpu-fp16", "llama2-cpu-fp32", "llama2-cpu-fp32-prunehead", "llama2-cpu-int8", "llama2-cuda-bf16",
    "llama2-cuda-fp16-paged", "llama2-cuda-fp32", "llama2-webgpu-fp16", "llama3-cpu-int4-asym", "llama3-cpu-fp32",
    "llama3-cpu-int4-qdq-unshared", "mistral-cpu-fp32", "qwen2-cpu-int4", "qwen3-cpu-fp16",
    "qwen3-cpu-int4-block128", "qwen3-cuda-fp16",
)  # fmt: skip
TRANSFORMERS_5 = (
    "llama2-fixed/decode", "llama2-fp16/prefill", "llama2-multi/decode", "llama2-opset23/decode",
    "llama2-ort-cpu/decode", "llama2-ort-cuda/decode", "llama2-static/decode", "llama2-static/prefill", "llama2-whole",
    "llama2/decode", "llama2/prefill", "llama3-ort-cpu/prefill", "mistral-multi/decode", "mistral-multi/prefill",
    "mistral-padded/decode", "qwen3-multi/decode", "qwen3-static/decode",
)  # fmt: skip
KEPT = (
    *(f"dynamo4-{case}" for case in DYNAMO),
    *(f"dynamo5-{case}" for case in DYNAMO_5),
    *(f"ts4-{case}" for case in TORCHSCRIPT),
    "ts5-qwen3",
    *(f"optimum4-{case}" for case in OPTIMUM),
    *(f"genai4-{case}" for case in GENAI_4),
    *(f"genai5-{case}" for case in GENAI_5),
    *(f"hf5-{case}" for case in TRANSFORMERS_5),
)
"""Cases of `make_models.py` that differ in what a compiler meets; behind a slash the file that is not called model."""


def main(models: Path, fixtures: Path) -> None:
    for case in KEPT:
        folder, _, file = case.partition("/")
        source = models / folder / f"{file or 'model'}.onnx"
        model = onnx.load(source, load_external_data=False)
        external = {tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
        onnx.load_external_data_for_model(model, str(source.parent))
        strip(model, external)
        data = gzip.compress(model.SerializeToString(deterministic=True), 9, mtime=0)
        (fixtures / f"{fixture_name(case)}.onnx.gz").write_bytes(data)


def fixture_name(case: str) -> str:
    folder, _, file = case.partition("/")
    return f"{folder}-{file}" if file in ("prefill", "decode") else folder


def strip(model: onnx.ModelProto, external: set[str]) -> None:
    """Drop the notes on nodes, which name files of whoever exported it, and the numbers of its weights. Those that lay
    in another file, `external`, are marked so."""
    _forget_notes(model)
    users = _users(model)
    order = {name: place for place, name in enumerate(users)}
    weights = [tensor for tensor in model.graph.initializer if _is_weight(tensor) and tensor.name in order]
    for place, tensor in enumerate(sorted(weights, key=lambda tensor: order[tensor.name])):
        tensor.doc_string = f"{place} {_recipe(tensor, users[tensor.name])}"
        tensor.ClearField("raw_data")
        if tensor.name in external:
            tensor.data_location = TensorProto.EXTERNAL
    for tensor in model.graph.initializer:
        if tensor.name.endswith(TABLES[1:]):
            _cut_rows(tensor)


def _forget_notes(model: onnx.ModelProto) -> None:
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for graph in _graphs(model.graph):
        for each in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            each.doc_string = ""
            del each.metadata_props[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _users(model: onnx.ModelProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """Nodes and operand numbers, by value, in the order of first use."""
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for graph in _graphs(model.graph):
        for node in graph.node:
            for index, name in enumerate(node.input):
                found.setdefault(name, []).append((node, index))
    return found


def _is_weight(tensor: TensorProto) -> bool:
    if prod(tensor.dims) <= FEW:
        return False
    matrix = tensor.data_type in FLOATS and len(tensor.dims) <= 2 and not tensor.name.endswith(TABLES)
    return matrix or tensor.data_type in PACKED


def _recipe(tensor: TensorProto, users: list[tuple[onnx.NodeProto, int]]) -> str:
    """How numbers like the real ones are drawn, so that products neither grow nor vanish."""
    if tensor.data_type in PACKED:
        return "bytes"
    if "scale" in tensor.name:
        return "uniform 0.0006 0.0018" if _bits(users) == 8 else "uniform 0.01 0.03"
    if len(tensor.dims) == 1:
        return "normal 0 0.1" if "bias" in tensor.name else "normal 1 0.1"
    rows = any(node.op_type in ("Gather", "Transpose", "FusedMatMul") for node, _ in users)
    return f"normal 0 {tensor.dims[1 if rows else 0] ** -0.5:.4f}"


def _bits(users: list[tuple[onnx.NodeProto, int]]) -> int:
    for node, _ in users:
        for attribute in node.attribute:
            if attribute.name == "bits":
                return attribute.i
    return 4


def _cut_rows(tensor: TensorProto) -> None:
    array = onnx.numpy_helper.to_array(tensor)[:POSITIONS]
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
