"""How do tests get an exported model of two layers, traced once for each kind, and a copy that they may change?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from hjgc.compiler import CompileResult, compile_model
from hjgc.models.export import export_model
from tests.models.checkpoints import write_checkpoint

VARIANTS = ("mha", "gqa", "tied", "bias", "qknorm", "llama3rope")
SMALL: dict[str, Any] = {"prompt": (1, 16), "context": 64, "kind": "decoder"}
"""Options that keep buckets and caches short; what is no decoder is refused."""


@cache
def exported(variant: str, dtype: str = "float32") -> Path:
    """The folder of a checkpoint with its `model.onnx`. For reading only: all tests of the process share it."""
    folder = Path(_home().name) / f"{variant}-{dtype}"
    write_checkpoint(folder, variant=variant, dtype=dtype, num_hidden_layers=2, seed=9)
    export_model(folder, folder / "model.onnx")
    return folder


@cache
def _home() -> TemporaryDirectory[str]:
    """Removed when the process ends."""
    return TemporaryDirectory(prefix="hjgc-exports-")


def copy_of(variant: str, folder: Path, dtype: str = "float32") -> Path:
    """`model.onnx` of a copy in `folder`, its weights hard-linked."""
    shutil.copytree(exported(variant, dtype), folder, copy_function=os.link, dirs_exist_ok=True)
    return folder / "model.onnx"


def changed(model: Path, change: Callable[[ir.Graph], None]) -> Path:
    """The same file with a change made to its graph."""
    loaded = ir.load(model)
    change(loaded.graph)
    model.unlink()  # other folders hold the same file
    ir.save(loaded, model)
    return model


def with_host_function(value: str, name: str = "steer", *, shaped: bool = True) -> Callable[[ir.Graph], None]:
    """A change that puts a call of the caller's function between a value and all that use it. Not `shaped`: the file
    does not say what the result is like."""

    def change(graph: ir.Graph) -> None:
        source = next(output for node in graph for output in node.outputs if output.name == value)
        maker = source.producer()
        assert maker is not None
        made = ir.node("HostFunction", [source], domain="hjgc", name=f"host/{name}", attributes={"name": name})
        result = made.outputs[0]
        result.name = f"host.{name}"
        if shaped:
            result.shape, result.type = source.shape, source.type
        for node, index in source.uses():
            if node is not made:
                node.replace_input_with(index, result)
        graph.opset_imports["hjgc"] = 1
        graph.insert_after(maker, made)

    return change


def compiled(model: Path) -> CompileResult:
    return compile_model(model, model.with_name("plan.hjg"), **SMALL)
