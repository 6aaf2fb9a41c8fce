"""Where must weights lie for ONNX Runtime to accept them, and how do they get there?"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from hjgc.models.checkpoint import TensorLocation
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.files import replacing

Link = Literal["hard", "copy"]
BESIDE_WEIGHTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""What a plan, or a person, needs of the model apart from its weights."""
NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def weights_within_reach(
    tensors: dict[str, TensorLocation], source: Path, output: Path, link: Link | None
) -> Generator[dict[str, TensorLocation]]:
    """The same tensors, in files inside `output`'s folder once symbolic links are followed: ONNX Runtime refuses
    others. With `link` the files, and the small ones of `BESIDE_WEIGHTS` in `source`, are placed there first, and what
    was placed is removed if the block fails."""
    if link is None:
        for file in {tensor.file for tensor in tensors.values()}:
            _check_inside(file, output)
        yield tensors
        return
    folder = weights_folder(output)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        problem = "expected a folder for the weights, or none yet, found a file or a symbolic link"
        raise InputError(folder, problem, next_step="remove it, or give the output another name")
    placed: list[Path] = []
    try:
        targets = {
            file: _place(file, folder / file.name, link, placed)
            for file in dict.fromkeys(tensor.file for tensor in tensors.values())
        }
        for name in BESIDE_WEIGHTS:
            if (source / name).is_file():
                _place(source / name, folder / name, link, placed)
        yield {name: replace(tensor, file=targets[tensor.file]) for name, tensor in tensors.items()}
    except BaseException:
        _remove(placed)
        raise


def weights_folder(output: Path) -> Path:
    """Where `link` places the files."""
    return output.parent / f"{output.stem}.weights"


def _check_inside(file: Path, output: Path) -> None:
    root, real = output.parent.resolve(), file.resolve()
    if real.is_relative_to(root):
        return
    problem = f"expected weights inside the folder of {output}, which ONNX Runtime asks for, found them at {real}"
    next_step = "add `--link hard` (no disk needed, same disk only) or `--link copy`"
    if file.is_symlink():
        raise InputError(file, problem, next_step=next_step)
    raise InputError(file, problem, next_step=f"{next_step}, or write the ONNX file to {real.parent}")


def _place(file: Path, target: Path, link: Link, placed: list[Path]) -> Path:
    """Put `file` at `target`, whole or not at all; note in `placed` what was not there before."""
    try:
        if not target.parent.is_dir():
            placed.append(target.parent)
            target.parent.mkdir()
        if not os.path.lexists(target):
            placed.append(target)
        (_copy if link == "copy" else _hard_link)(file.resolve(), target)
    except OSError as error:
        raise InputError(target.parent, f"cannot be written: {error.strerror or error}") from error
    return target


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _hard_link(source: Path, target: Path) -> None:
    """os.link cannot replace, hence the other name; os.replace does nothing between twins, hence the unlink."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            problem = f"expected a folder on the same disk as {source}, found one on another"
        elif error.errno in NO_HARD_LINKS:
            problem = f"expected a disk that can hard-link {source}, found: {error.strerror}"
        else:
            raise
        raise InputError(target.parent, problem, next_step="use `--link copy`") from None
    finally:
        temporary.unlink(missing_ok=True)


def _remove(placed: list[Path]) -> None:
    for path in reversed(placed):
        with suppress(OSError):  # a file that was never made, a folder that something else was put into
            path.rmdir() if path.is_dir() else path.unlink()
