"""Is progress one line a stage, stages that count not a hundred, and a table in a pipe a line a row?"""

from __future__ import annotations

import io
import sys

import pytest

from hjgc.tools import console


def told(capsys: pytest.CaptureFixture[str], *stages: str) -> list[str]:
    with console.stages() as tell:
        for stage in stages:
            tell(stage)
    return capsys.readouterr().err.splitlines()


def test_a_pipe_gets_a_line_a_stage_and_a_tenth_of_those_that_count(capsys: pytest.CaptureFixture[str]) -> None:
    builds = [f"build {number} of 76 kernels" for number in range(1, 77)]
    lines = told(capsys, "load", *builds, "emit")
    assert lines[0] == "load" and lines[-2:] == [builds[-1], "emit"]
    assert lines[1] == builds[0] and len(lines) == 2 + 11


@pytest.mark.parametrize(
    "stages", [("build 1 of 1 kernels",), ("1 of 2", "2 of 2"), ("a plan of 3 parts",), ("0 of 0",)]
)
def test_few_that_count_are_all_told(stages: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, *stages) == list(stages)


def test_on_a_terminal_stages_that_count_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with console.stages() as tell:
        for stage in ("load", "build 1 of 3 kernels", "build 2 of 3 kernels", "build 3 of 3 kernels", "emit"):
            tell(stage)
    last = shown.getvalue().split("\x1b[2K")[-3:]
    assert "build 3 of 3 kernels" in "".join(last)
    assert not any("build 1 of 3" in line and "build 3 of 3" in line for line in last)


TABLE = ("name", "bytes ", "what"), [("x", 3, "日本"), ("a longer [name]", 22, ""), ("z", "", "the last")]


def test_a_table_in_a_pipe_is_as_on_a_terminal_with_room_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = console.table(*TABLE, right=("bytes ",))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert console.table(*TABLE, right=("bytes ",)) == piped


def test_a_cell_of_two_lines_is_one_in_a_pipe() -> None:
    assert console.table(("a", "b"), [("x\ny", 1)]).splitlines()[2:] == ["x\\ny   1"]
