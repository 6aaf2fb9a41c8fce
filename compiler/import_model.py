"""Which network does this ONNX file hold, and where do its weights lie? Structure only: no weight is read."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.external_data import set_base_dir

from hjgc.compiler.check_onnx import check_external_data, check_proto, check_tensors
from hjgc.plan_format.errors import InputError

__all__ = ["ImportedModel", "check_external_data", "import_folder", "import_onnx"]

MAX_MODEL_BYTES = 2 << 30
MAX_CONFIG = 16 << 20


@dataclass(frozen=True)
class ImportedModel:
    """The graph, the folder that its external data is named from, and the digest of what was read."""

    model: ir.Model
    root: Path
    name: str
    sha256: str


def import_onnx(path: Path, *, function: bool = False) -> ImportedModel:
    """Load the graph of an ONNX file and check that every external weight is where the file says. Of a `function`,
    whose nodes may be anything that ONNX Runtime runs, no node is compared with the standard.

    Raises InputError for a file that is missing, not ONNX or cut short; CompileError for a graph that ONNX does not
    allow, and for weights that are missing, short or outside the model's folder."""
    data = _read(path)
    model = _load(data, path, path.parent, function=function)
    _note_config(model, path.parent)
    return ImportedModel(model, path.parent, path.stem, hashlib.sha256(data).hexdigest())


def _note_config(model: ir.Model, folder: Path) -> None:
    """What our own export notes in the file and others leave in a `config.json` beside it: its type and context."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")[:MAX_CONFIG])
    except (OSError, ValueError, RecursionError):
        return
    for name, entry in (("hjgc.context", "max_position_embeddings"), ("hjgc.model_type", "model_type")):
        found = config.get(entry) if isinstance(config, dict) else None
        if isinstance(found, int | str):
            model.metadata_props.setdefault(name, str(found))


def import_folder(folder: Path) -> ImportedModel:
    """Trace a Hugging Face folder and keep the graph in memory; the weights are named where they lie.

    Raises InputError for files that cannot be used."""
    from hjgc.models.export import build_model

    # By way of its bytes, which round numbers to float32: a folder and its export give the same plan.
    data = ir.to_proto(build_model(folder)).SerializeToString(deterministic=True)
    name = folder.resolve().name
    return ImportedModel(_load(data, folder, folder), folder, name, hashlib.sha256(data).hexdigest())


def _load(data: bytes, path: Path, root: Path, *, function: bool = False) -> ir.Model:
    """The model in these bytes of `path`, found well-formed, its weights found under `root`."""
    try:
        proto = onnx.ModelProto.FromString(data)
    except Exception as error:
        raise _not_onnx(path, data, error) from None
    check_proto(proto, path, root, function=function)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise _not_onnx(path, data, error) from None
    set_base_dir(model.graph, root)
    check_tensors(model, path, len(data))
    return model


def _not_onnx(path: Path, data: bytes, error: Exception) -> InputError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    words = " ".join(str(cause).split())[:200] or type(cause).__name__
    return InputError(
        path,
        f"expected an ONNX model, found bytes that do not parse, from {data[:8]!r} on ({words})",
        next_step="it may be cut short: copy or export it again",
    )


def _read(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(path, "expected an ONNX file or a model folder, found what is no regular file")
        if found.st_size > MAX_MODEL_BYTES:
            raise InputError(
                path,
                f"expected at most {MAX_MODEL_BYTES} bytes, which is all that ONNX allows, found {found.st_size}",
                next_step="export it with its weights in files of their own (external data)",
            )
        data = path.read_bytes()
    except FileNotFoundError:
        problem = "expected an ONNX file or a model folder, found nothing there"
        raise InputError(path, problem, next_step="make one with `hjgc export`") from None
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if data[:8] == b"HJGCPLAN":
        raise InputError(path, "expected an ONNX model, found a plan", next_step="see `hjgc inspect` or `hjgc run`")
    if not data:
        raise InputError(path, "expected an ONNX model, found an empty file", next_step="copy or export it again")
    return data
