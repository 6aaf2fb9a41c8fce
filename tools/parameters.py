"""How do words on the command line become values, and which are refused before any work is done?"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hjgc.plan_format.errors import InputError

_F = TypeVar("_F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, readable=False)
"""A path as it was written. Whoever opens it says what is wrong with it: one wording, whichever way it is reached."""


def as_json(function: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def prompt_range(words: str) -> tuple[int, int]:
    """`LOW:HIGH`, two whole numbers."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", words, re.ASCII)
    if found is None:
        raise click.BadParameter(f"expected LOW:HIGH, say 1:512, found {words!r}")
    return int(found[1]), int(found[2])


def size_range(words: str) -> tuple[str, int, int]:
    """`NAME=LOW:HIGH`, a name and two whole numbers."""
    found = re.fullmatch(r"([^=]{1,128})=(\d{1,10}):(\d{1,10})", words, re.ASCII)
    if found is None:
        raise click.BadParameter(f"expected NAME=LOW:HIGH, say batch=1:8, found {words!r}")
    return found[1], int(found[2]), int(found[3])


def size_value(words: str) -> tuple[str, int]:
    """`NAME=VALUE`, a name and a whole number."""
    found = re.fullmatch(r"([^=]{1,128})=(\d{1,10})", words, re.ASCII)
    if found is None:
        raise click.BadParameter(f"expected NAME=VALUE, say batch=8, found {words!r}")
    return found[1], int(found[2])


def token_ids(words: str) -> tuple[int, ...]:
    """Token ids with commas or spaces between them."""
    ids = words.replace(",", " ").split()
    for word in ids or [words]:
        if re.fullmatch(r"\d{1,10}", word, re.ASCII) is None:
            raise click.BadParameter(f"expected token ids, say 1,15,7, found {word!r}")
    return tuple(int(word) for word in ids)


def example(*lines: str) -> str:
    """The epilog of a command's help: lines as one would type them."""
    return "\b\nExample:" + "".join(f"\n  {line}" for line in lines)


def refuse_options(names: Collection[str], problem: str) -> None:
    """None of these parameters of the command was given. Raises InputError for the first that was."""
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in names and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            flag = max(option.opts, key=len)
            raise InputError(flag, problem, next_step=f"leave {flag} out")


def prompt_text(given: str) -> str:
    """The text itself, or standard input for `-`, less the line end that `echo` adds. Raises InputError."""
    if given == "-":
        data, place = sys.stdin.buffer.read(), "standard input"
    else:
        data, place = os.fsencode(given), "--prompt"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise InputError(place, f"expected text in UTF-8, found {found}") from None
    return text.removesuffix("\n").removesuffix("\r") if given == "-" else text


def check_output(output: Path, *, source: Path, suffix: str) -> None:
    """Refuse, before minutes of work, an output that could not be written or that would replace what is read.

    Raises InputError."""
    folder = output.parent
    if not folder.is_dir():
        problem, mend = f"expected a folder to write into, found none at {folder}", f"make it: mkdir -p {folder}"
        raise InputError(output, problem, next_step=mend)
    if output.is_dir():
        raise InputError(
            output,
            "expected a file to write, found a folder",
            next_step=f"name a file in it: -o {output / ('out' + suffix)}",
        )
    if not os.access(folder, os.W_OK):
        raise InputError(
            output,
            f"expected a folder that may be written to, found {folder} read-only",
            next_step="choose another output path",
        )
    if output.exists() and output.suffix != suffix and _belongs_to(output, source):
        raise InputError(
            output,
            "expected a new file, found one of the model's own",
            next_step=f"choose a name that ends in {suffix}",
        )


def _belongs_to(output: Path, source: Path) -> bool:
    return output.samefile(source) or (source.is_dir() and output.resolve().parent == source.resolve())
