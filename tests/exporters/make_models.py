"""What do the exporters of one environment write for each small network?

    PYTHONHASHSEED=0 .exporters/env-4/bin/python -m tests.exporters.make_models .exporters/models [CASE PREFIX ...]

A case that is there already is kept. Beside its files stands `about.json`: exporter, architecture, versions, and the
error if the exporter failed. The seed makes the files the same each time: some exporters name and sort by sets.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.exporters.checkpoints import CONFIGURATIONS, MAJOR, write_checkpoint
from tests.exporters.exporting import dynamo, genai, optimum, optimum_merged, torchscript, transformers_own

PACKAGES = ("torch", "transformers", "optimum-onnx", "onnxruntime-genai")
ALL, SOME, TIED = tuple(CONFIGURATIONS), ("llama2", "qwen3"), ("llama3", "qwen3")
QUIET = ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")


@dataclass(frozen=True)
class Row:
    """What one exporter is asked for, and of which architectures. A case is named `exporter-architecture-variant`."""

    variant: str
    architectures: tuple[str, ...]
    export: Callable[..., None]
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def row(variant: str, architectures: tuple[str, ...], export: Callable[..., None], **options: Any) -> Row:
    return Row(variant, architectures, export, options)


DYNAMO = (
    row("", ALL, dynamo),
    row("opset18", SOME, dynamo, opset=18),
    row("opset23", ("llama2", "llama3", "mistral", "qwen3"), dynamo, opset=23),
    row("opset24", ("llama2", "llama3", "mistral", "qwen3"), dynamo, opset=24),
    row("eager", SOME, dynamo, attention="eager"),
    row("eager-opset23", SOME, dynamo, attention="eager", opset=23),
    row("noopt", SOME, dynamo, optimize=False),
    row("inline", SOME, dynamo, external=False),
    row("fp16", SOME, dynamo, dtype="float16"),
    row("fp16-opset23", SOME, dynamo, dtype="float16", opset=23),
    row("bf16", SOME, dynamo, dtype="bfloat16"),
    row("nomask", SOME, dynamo, mask=False),
    row("nopos", SOME, dynamo, positions=False),
    row("nomask-nopos", ("llama2", "qwen2", "qwen3"), dynamo, mask=False, positions=False),
    row("opset23-nomask-nopos", ("llama2",), dynamo, mask=False, positions=False, opset=23),
    row("fixedshape", SOME, dynamo, fixed=True),
    row("static", ALL, dynamo, kind="static", mask=False, positions=MAJOR < 5),
    row("windowed", ("mistral",), dynamo, kind="windowed", mask=False),
    row("prefill", ("llama2", "mistral"), dynamo, kind="new"),
    row("nocache", ALL, dynamo, kind="none", mask=False, positions=False),
    row("nocache-mask", ALL, dynamo, kind="none", positions=False),
    row("nocache-opset23", ("llama2",), dynamo, kind="none", mask=False, positions=False, opset=23),
)
TORCHSCRIPT = (
    row("", ALL, torchscript),
    row("opset14", ("llama2", "llama3"), torchscript, opset=14),
    row("eager", SOME, torchscript, attention="eager"),
    row("fp16", SOME, torchscript, dtype="float16"),
    row("nomask", SOME, torchscript, mask=False),
    row("nopos", SOME, torchscript, positions=False),
    row("nocache", SOME, torchscript, kind="none", mask=False, positions=False),
)
OPTIMUM = (
    row("", ALL, optimum),
    row("merged", ALL, optimum_merged),
    row("opset14", SOME, optimum, arguments=("--opset", "14")),
    row("O2", SOME, optimum, arguments=("--optimize", "O2")),
    row("noconstfold", SOME, optimum, arguments=("--no-constant-folding",)),
    row("fp16", SOME, optimum, arguments=("--dtype", "fp16")),
    row("bf16", SOME, optimum, arguments=("--dtype", "bf16")),
    row("static", SOME, optimum, arguments=("--no-dynamic-axes",)),
    row("nopast", SOME, optimum, task="text-generation"),
)
QUANTISED = ("llama2", "llama3", "qwen3")
INT4 = "int4_" if MAJOR < 5 else ""
"""How the options of quantisation begin."""
GENAI = (
    row("cpu-fp32", ALL, genai, precision="fp32", device="cpu"),
    row("cuda-fp32", SOME, genai, precision="fp32", device="cuda"),
    row("cuda-fp16", ALL, genai, precision="fp16", device="cuda"),
    row("dml-fp16", SOME, genai, precision="fp16", device="dml"),
    row("cuda-int4", SOME, genai, precision="int4", device="cuda"),
    row("cpu-int4", ALL, genai, precision="int4", device="cpu", options=(f"{INT4}block_size=32",)),
    row("cpu-int4-block128", QUANTISED, genai, precision="int4", device="cpu", options=(f"{INT4}block_size=128",)),
    row("cpu-int4-asym", QUANTISED, genai, precision="int4", device="cpu", options=(f"{INT4}is_symmetric=false",)),
    row("cpu-int4-qdq", QUANTISED, genai, precision="int4", device="cpu", options=("use_qdq=true",)),
    row("cpu-int4-rtn", SOME, genai, precision="int4", device="cpu", options=(f"{INT4}algo_config=rtn",)),
)  # fmt: skip
GENAI_4 = (
    *GENAI,
    row("cpu-int4-kquant-mixed", SOME, genai, precision="int4", device="cpu",
        options=("int4_algo_config=k_quant_mixed",)),
)  # fmt: skip
GENAI_5 = (
    *GENAI,
    row("cpu-fp16", SOME, genai, precision="fp16", device="cpu"),
    row("webgpu-fp16", SOME, genai, precision="fp16", device="webgpu"),
    row("cuda-bf16", SOME, genai, precision="bf16", device="cuda"),
    row("cpu-int8", SOME, genai, precision="int8", device="cpu"),
    row("cpu-int4-kquant", SOME, genai, precision="int4", device="cpu", options=("algo_config=k_quant",)),
    row("cpu-int4-kquant-mixed", ("llama2",), genai, precision="int4", device="cpu",
        options=("algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8")),
    row("cpu-fp32-nofuse", SOME, genai, precision="fp32", device="cpu", options=("fuse_qkv=false",)),
    row("cpu-fp32-prunehead", SOME, genai, precision="fp32", device="cpu", options=("prune_lm_head=true",)),
    row("cpu-fp32-shared", TIED, genai, precision="fp32", device="cpu", options=("shared_embeddings=true",)),
    row("cpu-int4-shared", TIED, genai, precision="int4", device="cpu", options=("shared_embeddings=true",)),
    row("cpu-int4-qdq-unshared", TIED, genai, precision="int4", device="cpu",
        options=("use_qdq=true", "shared_embeddings=false")),
    row("cpu-int4-asym-unshared", TIED, genai, precision="int4", device="cpu",
        options=("is_symmetric=false", "shared_embeddings=false")),
    row("cuda-fp16-paged", SOME, genai, precision="fp16", device="cuda", options=("use_paged_attention=true",)),
)  # fmt: skip
TRANSFORMERS_5 = (
    row("", ALL, transformers_own),
    row("multi", ALL, transformers_own, several=True),
    row("static", ALL, transformers_own, several=True, static=True),
    row("padded", ("llama2", "mistral", "qwen3"), transformers_own, several=True, padded=True),
    row("eager", SOME, transformers_own, several=True, attention="eager"),
    row("opset23", SOME, transformers_own, several=True, opset_version=23),
    row("fp16", SOME, transformers_own, several=True, dtype="float16"),
    row("noopt", SOME, transformers_own, several=True, optimize=False),
    row("fixed", SOME, transformers_own, dynamic=False),
    row("whole", SOME, transformers_own, whole=True),
    row("ort-cpu", ("llama2", "llama3", "mistral", "qwen3"), transformers_own, several=True, ort_fusions="cpu"),
    row("ort-cuda", ("llama2", "llama3", "mistral", "qwen3"), transformers_own, several=True, ort_fusions="cuda"),
)
EXPORTERS: dict[int, dict[str, tuple[Row, ...]]] = {
    4: {"dynamo4": DYNAMO, "ts4": TORCHSCRIPT, "optimum4": OPTIMUM, "genai4": GENAI_4},
    5: {"dynamo5": DYNAMO, "ts5": TORCHSCRIPT[:1], "hf5": TRANSFORMERS_5, "genai5": GENAI_5},
}
"""By the major version of transformers."""


@dataclass(frozen=True)
class About:
    """`about.json` of a case."""

    exporter: str
    architecture: str
    variant: str
    versions: dict[str, str]
    error: str = ""


def main(models: Path, prefixes: list[str]) -> None:
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name, exporter, architecture, each in _cases():
        folder = models / name
        if (folder / "about.json").is_file() or (prefixes and not name.startswith(tuple(prefixes))):
            continue
        start = time.monotonic()
        error = _export(each, _checkpoint(models, architecture), folder)
        about = About(exporter, architecture, each.variant, _versions(), error)
        (folder / "about.json").write_text(json.dumps(asdict(about), indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {error or 'exported'} ({time.monotonic() - start:.1f} s)", flush=True)


def _cases() -> Iterator[tuple[str, str, str, Row]]:
    """Name, exporter, architecture, row."""
    for exporter, rows in EXPORTERS[MAJOR].items():
        for each in rows:
            for architecture in each.architectures:
                name = "-".join(filter(None, (exporter, architecture, each.variant)))
                yield name, exporter, architecture, each


def _checkpoint(models: Path, architecture: str) -> Path:
    folder = models.parent / f"checkpoints-{MAJOR}" / architecture
    if not folder.is_dir():
        write_checkpoint(architecture, folder)
    return folder.resolve()


def _export(each: Row, checkpoint: Path, folder: Path) -> str:
    """The first line of what went wrong; nothing if files were written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        each.export(checkpoint, folder.resolve(), **each.options)
    except Exception as error:  # exporters raise whatever they like
        return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:300]
    return "" if any(folder.glob("*.onnx")) else "it wrote no file"


def _versions() -> dict[str, str]:
    installed = {found.metadata["Name"] for found in metadata.distributions()}
    return {name: metadata.version(name).partition("+")[0] for name in PACKAGES if name in installed}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
