"""Are a plan's weight files those that it was compiled against?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hjgc.plan_format import PlanFile
from hjgc.plan_format.errors import InputError, PlanError
from hjgc.plan_format.fingerprint import check_weight_file, file_digest
from hjgc.plan_format.structs import WeightFile


@dataclass(frozen=True)
class WeightCheck:
    """`problem` is empty for the file compiled against. `digest` is its sha256 where it was asked for."""

    name: str
    bytes: int
    problem: str
    digest: str | None = None
    recorded: str | None = None


def check_weight_files(file: PlanFile, root: Path, *, full: bool) -> list[WeightCheck]:
    """The fingerprint of every file, with `full` also its sha256. Raises PlanError, InputError for a file that is
    missing, unreadable or outside the root."""
    return [_check(file, expected, root, full) for expected in file.plan.files]


def _check(file: PlanFile, expected: WeightFile, root: Path, full: bool) -> WeightCheck:
    try:
        path = check_weight_file(expected, root, file.path)
    except PlanError as error:
        if error.place == os.fspath(file.path):  # no such file, or one outside the root: nothing was compared
            raise
        return WeightCheck(expected.name, expected.bytes, error.problem)
    digest = _digest(path) if full else None
    problem = ""
    if None not in (digest, expected.sha256) and digest != expected.sha256:
        problem = f"expected sha256 {expected.sha256}, found {digest}"
    return WeightCheck(expected.name, expected.bytes, problem, digest, expected.sha256)


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(path, f"expected a readable weight file, found {error.strerror or error}") from None
