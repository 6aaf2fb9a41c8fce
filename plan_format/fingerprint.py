"""Is this the weight file that the plan was compiled against, told without reading all of it?"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

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
            samples = hashlib.sha256()
            for i in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                samples.update(file.read(SAMPLE_BYTES))
        return WeightFile(name, size, head, samples.hexdigest(), file_digest(path) if digest else None)
    except OSError as error:
        raise InputError(path, f"expected a readable weight file, found {error.strerror or error}") from None


def file_digest(path: Path) -> str:
    """sha256 of the whole file, in hexadecimal. Raises OSError."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(CHUNK_BYTES):
            whole.update(piece)
    return whole.hexdigest()


def check_weight_file(expected: WeightFile, root: Path, plan: Path) -> Path:
    """The file's path under `root`, if it is the one compiled against. Raises PlanError that says what differs."""
    path = root / expected.name
    real_root = os.path.realpath(root)
    if os.path.commonpath((real_root, os.path.realpath(path.parent))) != real_root:
        raise PlanError(plan, f"expected {expected.name} inside the weights root {root}, found it outside", field="$.files")
    if not path.is_file():
        raise PlanError(plan, f"expected {path}, found no such file", field="$.files", next_step="give the weights root")
    found = fingerprint(path, expected.name)
    for field in ("bytes", "head_sha256", "sample_sha256"):
        want, got = getattr(expected, field), getattr(found, field)
        if want != got:
            raise PlanError(
                path,
                f"expected {field} {want}, found {got}",
                next_step="the weights changed since the plan was compiled: compile again",
            )
    return path
