"""How do tests run hjgc's command line, in this process or in one of its own?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import pytest

from hjgc.plan_format import save
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.tools import cli
from tests.plans import CONSTANTS, small_plan, weights_file

SRC = Path(__file__).parents[2] / "src"
PROGRAM = (sys.executable, "-m", "hjgc.tools.cli")


@dataclass(frozen=True)
class Ran:
    """What one command line came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong. Fails unless it is the last, the only one, and no traceback."""
        *before, last = self.err.splitlines()
        assert last.startswith("error: "), self.err
        assert not any("error" in line or "Traceback" in line for line in before), self.err
        return last


class CommandLine:
    """Runs hjgc in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Ran:
        self._capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        written = self._capsys.readouterr()
        return Ran(code, written.out, written.err)


def in_its_own_process(*program: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a program that sees this source tree and that Ctrl-C interrupts, however the tests themselves run."""
    return subprocess.Popen(
        program,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def write_small_plan(folder: Path, *, function: str = "") -> Path:
    """A valid plan in `folder`, its weights beside it. It may call a function."""
    plan, weights = small_plan(function=function), folder / "weights.bin"
    weights.write_bytes(weights_file(plan))
    plan = msgspec.structs.replace(plan, files=(fingerprint(weights, weights.name, digest=False),))
    save(folder / "plan.hjg", plan, sections={"constants": CONSTANTS})
    return folder / "plan.hjg"
