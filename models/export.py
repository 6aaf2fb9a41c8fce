"""How does a Hugging Face checkpoint become an ONNX file, its weights staying where they are?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from hjgc._version import __version__
from hjgc.models.checkpoint import TensorLocation, locate_tensors
from hjgc.models.config import DecoderConfig, read_config
from hjgc.models.links import Link, weights_folder, weights_within_reach
from hjgc.models.tidy import tidy
from hjgc.plan_format.errors import HjgcError, InputError
from hjgc.plan_format.files import replacing

if TYPE_CHECKING:
    from types import ModuleType

Progress = Callable[[str], None]

DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class ExportResult:
    """What was written. `weights` are the files that `output` points into, `parameters` and `weight_bytes` what it uses
    of them."""

    output: Path
    weights: tuple[Path, ...]
    nodes: int
    parameters: int
    weight_bytes: int


def export_model(
    folder: Path, output: Path, *, link: Link | None = None, progress: Progress | None = None
) -> ExportResult:
    """Trace the model in `folder` (config.json and safetensors) into `output`, an ONNX file whose external data are the
    user's own files: no weight is read. With `link` those files, and the tokenizer and config beside them, are first
    placed beside `output`, in `<its stem>.weights/`, as hard links or as copies. `progress` hears the name of each
    stage as it starts.

    Raises InputError for files that cannot be used or written; whatever ends it early, nothing is left behind."""
    tell = progress or _nobody
    tell("read headers")
    config = read_config(folder)
    tensors = locate_tensors(folder, config)
    _check_name(output)
    with replacing(output) as temporary:
        if link == "copy":
            tell("copy weights")
        with weights_within_reach(tensors, folder, output, link) as placed:
            named = {name: replace(tensor, file=tensor.file.resolve()) for name, tensor in placed.items()}
            model = _assemble(config, named, output.parent, tell)
            beside = folder if link is None else weights_folder(output)
            describe(model, config, os.path.relpath(beside.resolve(), output.parent.resolve()))
            tell("write")
            ir.save(model, temporary, format="protobuf")
    return ExportResult(
        output,
        tuple(dict.fromkeys(tensor.file for tensor in placed.values())),
        len(model.graph),
        sum(math.prod(tensor.shape) for tensor in placed.values()),
        sum(tensor.length for tensor in placed.values()),
    )


def build_model(folder: Path, *, progress: Progress | None = None) -> ir.Model:
    """The graph of the model in `folder`, in memory: what an export into `folder` would write, but for files that are
    links, as in a Hugging Face cache. They are named where the link lies.

    Raises InputError for files that cannot be used."""
    tell = progress or _nobody
    tell("read headers")
    config = read_config(folder)
    model = _assemble(config, locate_tensors(folder, config), folder, tell)
    describe(model, config, ".")
    return model


def _assemble(config: DecoderConfig, tensors: dict[str, TensorLocation], root: Path, tell: Progress) -> ir.Model:
    tell("trace")
    model = _tracer().trace(config, {name: tensor.dtype for name, tensor in tensors.items()})
    tell("tidy")
    tidy(model)
    attach_weights(model, tensors, root)
    return model


def attach_weights(model: ir.Model, tensors: dict[str, TensorLocation], root: Path) -> None:
    """Point each initializer that carries a checkpoint tensor's name at that tensor's bytes. Files lie under `root`."""
    for name, tensor in tensors.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            Path(os.path.relpath(tensor.file.parent.resolve() / tensor.file.name, root.resolve())).as_posix(),
            tensor.offset,
            tensor.length,
            DTYPES[tensor.dtype],
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=root,
        )


def describe(model: ir.Model, config: DecoderConfig, folder: str) -> None:
    """Write down what config.json says and the graph does not. `folder`, relative to the ONNX file, is where to look
    for the tokenizer and generation_config.json."""
    model.producer_name, model.producer_version = "hjgc", __version__
    model.graph.name = config.model_type
    model.metadata_props["hjgc.model_type"] = config.model_type
    model.metadata_props["hjgc.context"] = str(config.context)
    model.metadata_props["hjgc.folder"] = Path(folder).as_posix()


def _check_name(output: Path) -> None:
    """Only *.onnx is written, so that a slip of the pen cannot replace the weights."""
    if output.suffix != ".onnx":
        raise InputError(output, f"expected an output name that ends in .onnx, found {output.name!r}")


def _tracer() -> ModuleType:
    """Imported late: torch takes a second, and bad input should be answered at once."""
    try:
        from hjgc.models import trace
    except ModuleNotFoundError as error:
        raise HjgcError(f"export needs {error.name}, which is not installed: pip install 'hjgc[export]'") from None
    return trace


def _nobody(stage: str) -> None:
    """Hears the stages when the caller does not."""
