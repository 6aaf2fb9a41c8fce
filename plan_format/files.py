"""How does a file appear whole or not at all?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hjgc.plan_format.errors import InputError


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary file beside `path` to write to: renamed to `path` if the block ends well, removed if it does not.

    Raises InputError for a folder that is missing or not writable, or a full disk."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(path, "expected a file to write, found a folder")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from None
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing. Raises InputError where it cannot."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _publish(temporary: Path, path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    os.replace(temporary, path)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(path, f"cannot be written: {error.strerror or error}", next_step="choose another output path")
