"""What does `hjgc COMMAND ...` run, and how does whatever goes wrong become one line and an exit code?

0: done. 2: something to mend (a file, an argument, this machine). 1: a bug in hjgc. 130: interrupted. 143: terminated.
141: whoever read standard output went away.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from hjgc._version import __version__
from hjgc.tools import commands, console

TRACEBACK = "HJGC_TRACEBACK"
DONE, BUG, TO_MEND = 0, 1, 2
INTERRUPTED, NOBODY_READS, TERMINATED = 130, 141, 143  # 128 + SIGINT, SIGPIPE, SIGTERM, as a shell counts
MACHINE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EIO", "EMFILE", "ENFILE", "ENOMEM", "EFBIG")
    if hasattr(errno, name)
}
"""What the operating system refuses whoever asks: no bug of ours."""

EPILOG = """\b
From a checkpoint to text:
  hjgc compile models/demo -o plan.hjg
  hjgc run plan.hjg --prompt "The list of"
"""


class Commands(click.Group):
    """The commands, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"{commands.__name__}.{cmd_name}").command


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="hjgc")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compile a model in ONNX into a plan, and serve the plan: a decoder language model, or any other as a function.

    Results go to standard output, progress and errors to standard error. Each command has an example: hjgc COMMAND
    --help."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code."""
    if "_HJGC_COMPLETE" in os.environ:  # the shell asks what could come next
        cli.main(prog_name="hjgc")
    signal.signal(signal.SIGTERM, _terminate)
    console.never_fail_on_a_character()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Nothing but SystemExit comes out."""
    try:
        result = _invoke(arguments)
        sys.stdout.flush()
        return result if type(result) is int else DONE
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except BrokenPipeError:
        console.give_up_stdout()
        return NOBODY_READS
    except (KeyboardInterrupt, click.Abort):
        console.note("interrupted")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        message, code = explain(error)
        console.error(message)
        return code
    finally:
        console.flush_stdout_or_give_it_up()


def _invoke(arguments: Sequence[str]) -> object:
    """click's own `main` without its handlers, which take an EOFError for an interruption."""
    with cli.make_context("hjgc", list(arguments)) as context:
        return cli.invoke(context)


def explain(error: Exception) -> tuple[str, int]:
    """The one line for an error, and the exit code: 2 for what a person can mend, 1 for a bug of ours."""
    if isinstance(error, ModuleNotFoundError) and (line := _missing(error.name or "")):
        return line, TO_MEND
    from hjgc.plan_format.errors import HjgcError

    match error:
        case HjgcError():
            return str(error), TO_MEND
        case click.ClickException():
            return _usage(error), TO_MEND
        case MemoryError():
            return (
                "this machine's memory is not enough; close other programs or use a smaller model or context",
                TO_MEND,
            )
        case OSError() if error.errno in MACHINE_ERRORS:
            return f"{error.filename or 'output'}: {error.strerror}", TO_MEND
        case _:
            return _bug(error), BUG


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{context.command_path}: {message}; see `{context.command_path} --help`"


def _missing(module: str) -> str | None:
    from hjgc.tools.requirements import for_module, pip_command

    needed = for_module(module)
    if needed is None:
        return None
    return f"expected the package {needed.package}, found it not installed; run `{pip_command(needed.text)}`"


def _bug(error: Exception) -> str:
    """Names the error and the last line of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}hjgc{os.sep}" in frame.filename]
    place = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"a bug in hjgc: {told}{place}; set {TRACEBACK}=1 to see all of it, and please report it"


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave the way an exception does, so that temporary files are removed."""
    del number, frame
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
