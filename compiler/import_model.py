"""Which network does this ONNX file hold, and where do its weights lie? Structure only: no weight is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from hjgc.plan_format.errors import CompileError, InputError

MAX_MODEL_BYTES = 2 << 30


@dataclass(frozen=True)
class ImportedModel:
    """The graph, the folder that its external data is named from, and the digest of what was read."""

    model: ir.Model
    root: Path
    name: str
    sha256: str


def import_onnx(path: Path) -> ImportedModel:
    """Load the graph of an ONNX file and check that every external weight is where the file says.

    Raises InputError for a file that is missing, not ONNX or cut short, or whose weights are missing or short."""
    data = _read(path)
    try:
        model = ir.load(path)
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(path, f"expected an ONNX model, found bytes that do not parse ({text})") from None
    if len(model.graph) == 0:
        raise InputError(path, "expected an ONNX model with nodes, found an empty graph")
    check_external_data(model, path)
    return ImportedModel(model, path.parent, path.stem, hashlib.sha256(data).hexdigest())


def import_folder(folder: Path) -> ImportedModel:
    """Trace a Hugging Face folder and keep the graph in memory; the weights are named where they lie.

    Raises InputError for files that cannot be used."""
    from hjgc.models.export import build_model

    model = build_model(folder)
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    return ImportedModel(model, folder, folder.resolve().name, hashlib.sha256(data).hexdigest())


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise InputError(path, f"expected at most {MAX_MODEL_BYTES} bytes, found {path.stat().st_size}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, "expected an ONNX file or a model folder, found nothing there") from None
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from None
    if data[:8] == b"HJGCPLAN":
        raise InputError(path, "expected an ONNX model, found a plan", next_step="see `hjgc inspect` or `hjgc run`")
    if not data:
        raise InputError(path, "expected an ONNX model, found an empty file")
    return data


def check_external_data(model: ir.Model, path: Path) -> None:
    """Every external initializer must lie inside its file, and be as long as its shape says. Raises CompileError."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.base_dir) / tensor.location
        field = f"initializer {value.name}"
        if not file.is_file():
            raise CompileError(
                path, f"expected its data in {tensor.location}, found no such file", field=field,
                next_step="put the weights back beside the model",
            )  # fmt: skip
        offset, size = tensor.offset or 0, file.stat().st_size
        length = size - offset if tensor.length is None else tensor.length
        if tensor.nbytes != length:
            raise CompileError(path, f"expected {tensor.nbytes} bytes for its shape, found {length}", field=field)
        if offset + length > size:
            raise CompileError(
                path, f"expected {length} bytes at {offset} of {tensor.location}, found a file of {size}", field=field,
                next_step="the weight file is cut short: fetch it again",
            )  # fmt: skip
