"""Is this the weight file that the plan was compiled against, told without reading all of it?"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from hjgc.plan_format.errors import InputError, PlanError
from hjgc.plan_format.structs import WeightFile

HEAD_BYTES = 65536
SAMPLES = 64
SAMPLE_BYTES = 4096
CHUNK_BYTES = 16 << 20


def fingerprint(path: Path, name: str, *, digest: bool = False) -> WeightFile:
    """Size, sha256 of the head, sha256 of evenly spaced blocks; with `digest` of the whole file too, read in pieces.

    Raises InputError for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
            samples = _sample_digest(file, size)
        return WeightFile(name, size, head, samples, file_digest(path) if digest else None)
    except OSError as error:
        raise InputError(path, f"expected a readable weight file, found {error.strerror or error}") from None


def _sample_digest(file: BinaryIO, size: int) -> str:
    samples = hashlib.sha256()
    for i in range(SAMPLES):
        file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
        samples.update(file.read(SAMPLE_BYTES))
    return samples.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of the whole file, in hexadecimal. Raises OSError."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK_BYTES):
            whole.update(piece)
    return whole.hexdigest()


def check_weight_file(expected: WeightFile, root: Path, plan: Path) -> Path:
    """The file's path under `root`, if it is the one compiled against. Raises PlanError that says what differs."""
    path = file_under_root(expected.name, root, plan, "$.files")
    size = path.stat().st_size
    if size != expected.bytes:
        raise _changed(path, "bytes", expected.bytes, size)
    found = fingerprint(path, expected.name)
    for field in ("bytes", "head_sha256", "sample_sha256"):
        want, got = getattr(expected, field), getattr(found, field)
        if want != got:
            raise _changed(path, field, want, got)
    return path


def file_under_root(name: str, root: Path, plan: Path, field: str) -> Path:
    """The regular file that a name in a plan means. Raises PlanError if it lies, links followed, outside `root`: a plan
    that comes as an archive may bring links. One road out is open, see `_is_cached_blob`."""
    path = root / name
    real_root, real = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    if not (real.is_relative_to(real_root) or _is_cached_blob(real, real_root)):
        raise PlanError(
            plan,
            f"expected {name!r} inside the weights root {root}, found it at {real}",
            field=field,
            next_step="name the folder where the file itself lies as the weights root, or put a hard link there",
        )
    if not os.path.isfile(path):  # unlike Path.is_file, says no to a name that is too long
        raise PlanError(
            plan, f"expected {path}, found no such file", field=field, next_step="name the weights root (`--weights`)"
        )
    return path


def _is_cached_blob(real: Path, real_root: Path) -> bool:
    """Hugging Face's cache keeps `<model>/snapshots/<revision>/<name>` as a link to `<model>/blobs/<digest>`."""
    return real_root.parent.name == "snapshots" and real.parent == real_root.parent.parent / "blobs"


def _changed(path: Path, field: str, want: object, got: object) -> PlanError:
    return PlanError(
        path,
        f"expected {field} {want}, found {got}",
        next_step="the weights changed since the plan was compiled: compile again",
    )
