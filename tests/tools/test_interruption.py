"""Does Ctrl-C, at whatever stage, end a command at once with nothing left behind?"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.models.checkpoints import write_checkpoint
from tests.tools.command_line import CommandLine, in_its_own_process

WAITS_AT_A_STAGE = """
import signal, sys
from hjgc.tools import cli, console
say = console.note
def note(text):
    say(text)
    if text == sys.argv[1]:
        signal.pause()
console.note = note
cli.main(sys.argv[2:])
"""

LIKE_A_SHELL = "import os, sys; from hjgc.tools import cli; os.setpgrp(); cli.main(sys.argv[1:])"
"""A command as a shell starts it: with its children it is the group that Ctrl-C on the terminal reaches."""


def stages_of(hjgc: CommandLine, *arguments: str | Path) -> list[str]:
    """The stages that a command announces when nothing stops it."""
    ran = hjgc(*arguments)
    assert ran.code == 0, ran.err
    return [line for line in ran.err.splitlines() if not line.startswith("note: ")]


def interrupted_at(stage: str, *arguments: str | Path) -> tuple[int, str]:
    """Start a command, wait for the line of a stage, send SIGINT: the exit code, and what it said after that."""
    process = in_its_own_process(sys.executable, "-c", WAITS_AT_A_STAGE, stage, *map(str, arguments))
    assert process.stderr is not None
    while (line := process.stderr.readline()) and line.strip() != stage:
        pass
    assert line.strip() == stage
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate()
    return process.returncode, rest


@pytest.mark.parametrize("stage", ["import", "emit", "verify"])
def test_ctrl_c_while_compiling(stage: str, model: Path, tmp_path: Path) -> None:
    assert interrupted_at(stage, "compile", model, "-o", tmp_path / "p.hjg") == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["write"])
def test_ctrl_c_while_exporting(stage: str, model: Path, tmp_path: Path) -> None:
    arguments = ("export", model.parent, "-o", tmp_path / "m.onnx", "--link", "copy")
    assert interrupted_at(stage, *arguments) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["compile", "compile folder", "export"])
def test_an_interruption_at_any_stage_leaves_nothing_behind(
    command: str, hjgc: CommandLine, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model if command == "compile" else write_checkpoint(tmp_path / "model", num_hidden_layers=1)
    out = tmp_path / "out"
    out.mkdir()
    arguments = [command.split()[0], source, "-o", out / "p.hjg"]
    if command == "export":
        arguments[-1:] = [out / "m.onnx", "--link", "copy"]
    stages = stages_of(hjgc, *arguments)
    assert len(stages) >= 4
    shutil.rmtree(out)
    out.mkdir()

    for stage in stages:

        def interrupt(text: str, stage: str = stage) -> None:
            if text == stage:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("hjgc.tools.console.note", interrupt)
            assert hjgc(*arguments).code == 130, stage
        assert list(out.iterdir()) == [], stage


def test_ctrl_c_while_kernels_are_built_ends_the_processes_that_build_them_and_their_files(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ("compile", str(model), "-o", str(tmp_path / "p.hjg"), "--target", "sm_90", "--prompt", "1:16")
    process = in_its_own_process(sys.executable, "-c", LIKE_A_SHELL, *arguments)
    assert process.stderr is not None
    while (line := process.stderr.readline()) and not line.startswith("build 1 of"):
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate()
    said = [line for line in rest.splitlines() if not line.startswith("build ")]
    assert (process.returncode, said) == (130, ["interrupted"])
    assert not (tmp_path / "p.hjg").exists()
    assert list((tmp_path / "temporary").iterdir()) == []
