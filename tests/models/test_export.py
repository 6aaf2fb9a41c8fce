"""Does the exported ONNX compute what transformers computes, out of the user's own weight files?"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file

from hjgc._version import __version__
from hjgc.models import trace
from hjgc.models.checkpoint import ITEM_BYTES, locate_tensors, tensor_shapes
from hjgc.models.config import read_config
from hjgc.models.export import ExportResult, export_model
from tests.models.checkpoints import write_checkpoint, write_sparse_checkpoint
from tests.models.running import onnx_logits, some_tokens, transformers_logits
from tests.models.tracing import trace_once

SRC = Path(__file__).parents[2] / "src"

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "mha": {"variant": "mha"},
    "gqa": {"variant": "gqa"},
    "tied": {"variant": "tied"},
    "bias": {"variant": "bias"},
    "qknorm": {"variant": "qknorm"},
    "llama3rope": {"variant": "llama3rope"},
    "all_biases": {"variant": "mha", "attention_bias": True, "mlp_bias": True},
    "wide_heads": {"variant": "gqa", "head_dim": 32},
    "three_layers": {"variant": "gqa", "num_hidden_layers": 3},
    "sharded": {"variant": "gqa", "sharded": True},
    "float16": {"variant": "bias", "dtype": "float16", "sharded": True},
    "bfloat16": {"variant": "qknorm", "dtype": "bfloat16"},
    "bfloat16_tied": {"variant": "tied", "dtype": "bfloat16"},
}

# The first step has no past; then prompts after prompts, single tokens, and 65 tokens at once.
STEPS = {
    "one_prompt": [100],
    "token_by_token": [1] * 40,
    "prompt_then_tokens": [17, *[1] * 20],
    "prompts_after_prompts": [7, 16, 1, 1, 65, 1],
}


@dataclass(frozen=True)
class Exported:
    folder: Path
    result: ExportResult
    files_before: set[str]

    def model(self) -> ir.Model:
        return ir.load(self.result.output)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    arguments: dict[str, Any] = {"num_hidden_layers": 2, "seed": 5} | CHECKPOINTS[request.param]
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), **arguments)
    before = names_in(folder)
    return Exported(folder, export_model(folder, folder / "model.onnx"), before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = write_checkpoint(tmp_path_factory.mktemp("plain"), seed=6, dtype="float16", num_hidden_layers=1)
    before = names_in(folder)
    return Exported(folder, export_model(folder, folder / "model.onnx"), before)


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("steps", STEPS)
def test_onnx_runtime_computes_what_transformers_computes(exported: Exported, steps: str) -> None:
    tokens = some_tokens(sum(STEPS[steps]))
    ours = onnx_logits(exported.result.output, tokens, STEPS[steps])
    theirs = transformers_logits(exported.folder, tokens)
    assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.std(theirs) > 0.1  # logits that say something


def test_every_weight_is_the_tensor_on_disk(exported: Exported) -> None:
    located = locate_tensors(exported.folder, read_config(exported.folder))
    weights = {name: value.const_value for name, value in exported.model().graph.initializers.items()}
    for name, tensor in located.items():
        weight = weights[name]
        assert isinstance(weight, ir.ExternalTensor)
        assert Path(weight.path) == tensor.file
        assert (weight.offset, weight.length) == (tensor.offset, tensor.length)
        assert tuple(weight.shape) == tensor.shape


def test_only_the_onnx_file_is_new_and_it_holds_no_weight(exported: Exported) -> None:
    assert names_in(exported.folder) == exported.files_before | {"model.onnx"}
    inline = [value.const_value for value in exported.model().graph.initializers.values()]
    inline = [tensor for tensor in inline if tensor is not None and not isinstance(tensor, ir.ExternalTensor)]
    assert max(tensor.nbytes for tensor in inline) <= 64  # the rotary frequencies, the shapes of reshapes


def test_the_graph_is_what_the_compiler_and_the_reader_expect(exported: Exported) -> None:
    config = read_config(exported.folder)
    graph = exported.model().graph
    ops = Counter(node.op_type for node in graph)
    norms = 2 + 2 * config.qk_norm
    biases = 3 * config.qkv_bias + config.output_bias + 3 * config.mlp_bias
    assert ops["MatMul"] == 7 * config.layers + 1
    assert ops["RMSNormalization"] == norms * config.layers + 1
    assert ops["Attention"] == config.layers
    assert ops["RotaryEmbedding"] == ops["Concat"] == 2 * config.layers
    assert ops["Sigmoid"] == config.layers
    assert ops["Add"] == (2 + biases) * config.layers + 1  # and past + new, for the mask
    assert ops["Gather"] == 1
    assert set(ops) <= {
        *("MatMul", "RMSNormalization", "Attention", "RotaryEmbedding", "Concat", "Sigmoid", "Mul", "Add", "Gather"),
        *("Transpose", "Reshape", "Cast"),
        *("Shape", "Squeeze", "Unsqueeze", "Range", "LessOrEqual", "Cos", "Sin"),  # positions and the mask
    }


def test_every_value_has_a_dtype_and_a_shape_in_the_declared_sizes(exported: Exported) -> None:
    new, past = "sequence_length", "past_sequence_length"
    for node in exported.model().graph:
        for value in node.outputs:
            assert value.dtype is not None
            assert value.shape is not None
            sizes = {dim.value for dim in value.shape if isinstance(dim, ir.SymbolicDim)}
            assert sizes <= {new, past, f"{past} + {new}"}, node


def test_inputs_and_outputs_have_the_usual_names_dtypes_and_shapes(exported: Exported) -> None:
    config = read_config(exported.folder)
    new, past, total = "sequence_length", "past_sequence_length", "past_sequence_length + sequence_length"
    cache = [(layer, part) for layer in range(config.layers) for part in ("key", "value")]
    assert [described(value) for value in exported.model().graph.inputs] == [
        ("input_ids", "INT64", [1, new]),
        ("position_ids", "INT64", [1, new]),
        *((f"past_key_values.{n}.{x}", "FLOAT", [1, config.kv_heads, past, config.head_dim]) for n, x in cache),
    ]
    assert [described(value) for value in exported.model().graph.outputs] == [
        ("logits", "FLOAT", [1, new, config.vocab_size]),
        *((f"present.{n}.{x}", "FLOAT", [1, config.kv_heads, total, config.head_dim]) for n, x in cache),
    ]


def described(value: ir.Value) -> tuple[str | None, str, list[int | str | None]]:
    assert value.dtype is not None
    assert value.shape is not None
    return value.name, value.dtype.name, [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def test_it_is_valid_onnx(exported: Exported) -> None:
    onnx.checker.check_model(exported.result.output, full_check=True)


def test_half_precision_weights_stay_half_and_are_cast_in_the_graph(plain: Exported) -> None:
    graph = plain.model().graph
    inputs = {node.name: node.inputs for node in graph}
    assert inputs["model.layers.0.mlp.up_proj/MatMul"][1] in outputs_of(graph, "Transpose")
    assert inputs["model.layers.0.mlp.up_proj/Transpose"][0] in outputs_of(graph, "Cast")
    (weight,) = inputs["model.layers.0.mlp.up_proj/Cast"]
    assert weight is graph.initializers["model.layers.0.mlp.up_proj.weight"]
    assert graph.initializers["model.layers.0.mlp.up_proj.weight"].dtype == ir.DataType.FLOAT16


def outputs_of(graph: ir.Graph, op: str) -> set[ir.Value]:
    return {value for node in graph if node.op_type == op for value in node.outputs}


def test_nodes_are_named_after_the_modules_they_came_from(plain: Exported) -> None:
    names = [node.name for node in plain.model().graph]
    assert len(set(names)) == len(names)
    assert {"model.layers.0.self_attn/Attention", "model.norm/RMSNormalization", "lm_head/MatMul"} <= set(names)


def test_the_file_says_who_wrote_it_and_what_the_graph_does_not_say(plain: Exported) -> None:
    model = plain.model()
    assert (model.producer_name, model.producer_version) == ("hjgc", __version__)
    assert model.metadata_props == {"hjgc.model_type": "llama", "hjgc.context": "1024", "hjgc.folder": "."}


def test_the_file_carries_nothing_of_the_machine_that_wrote_it(plain: Exported) -> None:
    content = plain.result.output.read_bytes()
    assert str(plain.folder).encode() not in content
    assert b".py" not in content


def test_the_result_counts_what_was_exported(plain: Exported) -> None:
    shapes = tensor_shapes(read_config(plain.folder)).values()
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    assert plain.result.parameters == parameters
    assert plain.result.weight_bytes == parameters * ITEM_BYTES["F16"]
    assert plain.result.weights == (plain.folder / "model.safetensors",)
    assert plain.result.nodes == len(plain.model().graph)


def test_the_same_checkpoint_gives_the_same_bytes(plain: Exported, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=7, dtype="float16", num_hidden_layers=1)  # other weights, the same headers
    program = f"""
from pathlib import Path
from hjgc.models.export import export_model
export_model(Path({str(folder)!r}), Path({str(folder / "model.onnx")!r}))
"""
    run = in_a_fresh_interpreter(program, PYTHONHASHSEED="99")
    assert (folder / "model.onnx").read_bytes() == plain.result.output.read_bytes(), run.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("padding", [1, 2, 4])
def test_weights_at_any_offset_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, padding: int) -> None:
    """The safetensors library pads its headers to 8 bytes; the format does not ask for it, nor does ONNX Runtime."""
    monkeypatch.setattr(trace, "trace", trace_once)
    folder = write_checkpoint(tmp_path, dtype=dtype, num_hidden_layers=1)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip() + b" " * 8
    header += b" " * (-len(header) % 8 + padding)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    assert locate_tensors(folder, read_config(folder))["model.norm.weight"].offset % 8 == padding
    export_model(folder, folder / "model.onnx")
    tokens = some_tokens(20)
    ours = onnx_logits(folder / "model.onnx", tokens, [16, 1, 1, 1, 1])
    assert_allclose(ours, transformers_logits(folder, tokens), rtol=0, atol=1e-4)


def test_weights_of_several_dtypes_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, variant="qknorm", dtype="bfloat16", num_hidden_layers=1)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.float() if "norm" in n else t for n, t in tensors.items()}, folder / "model.safetensors")
    export_model(folder, folder / "model.onnx")
    tokens = some_tokens(9)
    ours = onnx_logits(folder / "model.onnx", tokens, [8, 1])
    assert_allclose(ours, transformers_logits(folder, tokens), rtol=0, atol=1e-4)


def test_each_stage_is_told_as_it_starts(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_hidden_layers=1)
    stages: list[str] = []
    export_model(folder, folder / "model.onnx", progress=stages.append)
    assert stages == ["read headers", "trace", "tidy", "write"]


def test_a_big_export_reads_no_weights_and_says_nothing(tmp_path: Path) -> None:
    """Two layers of LLaMA-2-7B shape: 2.6 GB of weights that take no disk, and 512 MiB of memory beside torch's own."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
    folder = write_sparse_checkpoint(tmp_path, dtype="F32", **sizes, **heads)
    program = f"""
import resource
from pathlib import Path
from hjgc.models import trace
from hjgc.models.export import export_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export_model(Path({str(folder)!r}), Path({str(folder / "model.onnx")!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = in_a_fresh_interpreter(program)
    assert run.stderr == ""
    (grown,) = run.stdout.splitlines()
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 2**29
    assert (folder / "model.onnx").stat().st_size < 2**20


def in_a_fresh_interpreter(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(SRC)} | environment
    return subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False)
