"""Does whatever goes wrong become one line and the right exit code, with nothing slow loaded to say so?"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from hjgc._version import __version__
from hjgc.plan_format.errors import InputError, RunError
from hjgc.tools import cli, console
from tests.tools.command_line import PROGRAM, CommandLine, in_its_own_process

HEAVY = {"numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch", "transformers", "triton", "tokenizers"}
COMMANDS = cli.cli.list_commands(click.Context(cli.cli))


def the_command(name: str) -> click.Command:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    return command


def raising(error: BaseException) -> Any:
    """Something to put in place of a function, that fails with `error`."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_every_command_is_found_by_its_file() -> None:
    assert {"compile", "doctor", "export", "inspect", "run"} <= set(COMMANDS)


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_loads_nothing_slow(name: str | None) -> None:
    arguments = ["--help"] if name is None else [name, "--help"]
    program = f"""
import json, sys
from hjgc.tools import cli
code = cli.run({arguments!r})
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
    process = in_its_own_process(sys.executable, "-c", program)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.startswith("Usage: hjgc")
    assert HEAVY & set(json.loads(err)) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_the_command_itself_accepts(name: str, hjgc: CommandLine) -> None:
    ran = hjgc(name, "--help")
    assert ran.code == 0
    _, _, examples = ran.out.partition("Example:\n")
    for line in examples.strip().splitlines():
        program, command, *arguments = shlex.split(line)
        assert (program, command) == ("hjgc", name)
        with the_command(name).make_context(name, arguments):  # raises for what it does not know
            pass


def test_without_a_command_it_shows_its_help(hjgc: CommandLine) -> None:
    ran = hjgc()
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == hjgc("--help").out


def test_it_tells_its_version(hjgc: CommandLine) -> None:
    assert hjgc("--version").out.strip() == f"hjgc, version {__version__}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["complie"], "No such command 'complie'"),
        (["compile"], "Missing argument 'MODEL'"),
        (["compile", "m.onnx"], "Missing option '-o'"),
        (["compile", "m.onnx", "-o", "p.hjg", "--colour"], "No such option"),
        (["compile", "m.onnx", "-o", "p.hjg", "--prompt", "512"], "expected LOW:HIGH, say 1:512, found '512'"),
        (["compile", "m.onnx", "-o", "p.hjg", "--dtype", "int3"], "'int3' is not one of"),
        (["compile", "m.onnx", "-o", "p.hjg", "--context", "many"], "'many' is not a valid integer"),
        (["export", "folder", "-o", "m.onnx", "--link", "soft"], "'soft' is not one of"),
        (["run", "p.hjg"], "expected one of --prompt, --ids and --feed"),
        (["run", "p.hjg", "--prompt", "a", "--ids", "1"], "expected one of --prompt, --ids and --feed"),
        (["run", "p.hjg", "--ids", "1,two"], "expected token ids, say 1,15,7, found 'two'"),
        (["run", "p.hjg", "--ids", ""], "expected token ids, say 1,15,7, found ''"),
        (["run", "p.hjg", "--prompt", "a", "--deadline", "0"], "0.0 is not in the range"),
        (["inspect", "p.hjg", "--tokens", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_help(
    arguments: list[str], says: str, hjgc: CommandLine
) -> None:
    ran = hjgc(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.error
    assert re.search(r"see `hjgc[a-z ]* --help`$", ran.error)
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("m.onnx", "expected\nA", field="f", next_step="do B"), 2, "error: m.onnx: f: expected A; do B"),
        (RunError("expected a shorter prompt"), 2, "error: expected a shorter prompt"),
        (OSError(errno.ENOSPC, "No space left on device", "p.hjg"), 2, "error: p.hjg: No space left on device"),
        (MemoryError(), 2, "error: this machine's memory is not enough"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "-m pip install 'torch>="),
        (ModuleNotFoundError("No module named 'cuda'", name="cuda.bindings"), 2, "-m pip install 'cuda-bindings>="),
        (
            ModuleNotFoundError("No module named 'hjgc.x'", name="hjgc.x"),
            1,
            "error: a bug in hjgc: ModuleNotFoundError",
        ),
        (ValueError("no such thing"), 1, "error: a bug in hjgc: ValueError: no such thing at inspect.py:"),
        (EOFError(), 1, "error: a bug in hjgc: EOFError at"),
        (KeyError("x"), 1, "set HJGC_TRACEBACK=1"),
    ],
)
def test_an_exception_becomes_one_line(
    error: Exception, code: int, says: str, hjgc: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HJGC_TRACEBACK", raising=False)
    monkeypatch.setattr("hjgc.plan_format.load", raising(error))
    ran = hjgc("inspect", "plan.hjg")
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.error
    assert len(ran.err.splitlines()) == 1


def test_the_traceback_is_there_for_whoever_asks(hjgc: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJGC_TRACEBACK", "1")
    monkeypatch.setattr("hjgc.plan_format.load", raising(ValueError("no such thing")))
    ran = hjgc("inspect", "plan.hjg")
    assert ran.code == 1
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: a bug in hjgc: ValueError")


def test_an_interruption_is_no_error(hjgc: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hjgc.plan_format.load", raising(KeyboardInterrupt()))
    ran = hjgc("inspect", "plan.hjg")
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted\n")


def test_a_reader_that_goes_away_is_no_error(plan: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = in_its_own_process(*PROGRAM, "inspect", str(plan), "--json", stdout=write)
    os.close(write)
    _, err = process.communicate()
    assert (process.returncode, err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
def test_a_full_disk_behind_standard_output_is_one_line(plan: Path) -> None:
    with open("/dev/full", "w") as full:
        process = in_its_own_process(*PROGRAM, "inspect", str(plan), "--json", stdout=full)
        _, err = process.communicate()
    assert (process.returncode, err) == (2, "error: output: No space left on device\n")


def test_termination_leaves_the_way_an_exception_does(tmp_path: Path) -> None:
    left = tmp_path / "left"
    program = f"""
import os, signal, sys
from pathlib import Path
from hjgc.tools import cli
def load(path):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        Path({str(left)!r}).touch()
import hjgc.plan_format
hjgc.plan_format.load = load
cli.main(["inspect", "plan.hjg"])
"""
    process = in_its_own_process(sys.executable, "-c", program)
    _, err = process.communicate()
    assert (process.returncode, err) == (143, "")
    assert left.exists()


def test_a_name_from_a_plan_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("a\x1b[2Jb\nc")
    console.error("x\x07y")
    assert capsys.readouterr() == ("a\\x1b[2Jb\nc\n", "error: x\\x07y\n")
    assert "\x1b" not in console.table(("a",), [("\x1b[31m[red]x[/red]",)])
    assert "[red]x[/red]" in console.table(("a",), [("[red]x[/red]",)])


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (13 << 30, "13.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_bytes_are_said_in_the_unit_that_fits(count: int, said: str) -> None:
    assert console.size(count) == said
