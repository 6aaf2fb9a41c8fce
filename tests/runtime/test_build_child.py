"""Does the process that builds kernels answer as the runtime expects, and is its end a sentence?"""

from __future__ import annotations

import os
import select
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hjgc.plan_format.building import BuildRequest
from hjgc.runtime.build_child import BuildChild, ChildLost
from hjgc.runtime.just_in_time import JustInTime, Why
from tests.runtime.gpu_plan import FakeChild, gpu_plan
from tests.runtime.serving import PATIENCE

REQUEST = BuildRequest("rms_norm", {}, "sm_90", "0" * 64)
SILENT = "import sys; sys.stdin.read()"
ANSWERS = "import sys; sys.stdin.readline(); sys.stdout.write({!r}); sys.stdout.flush(); sys.stdin.read()"

STARTS_A_COMPILER = """
import subprocess, sys, tempfile
tempfile.mkstemp()
compiler = "print('started', flush=True); import signal; signal.pause()"
with open(sys.argv[1], "w") as held:
    subprocess.Popen([sys.executable, "-c", compiler], stdout=held)
sys.stdin.read()
"""


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[BuildChild]:
    started = BuildChild([sys.executable, "-c", request.param])
    yield started
    started.close()


def test_the_real_one_refuses_to_build_from_another_text_than_the_installed_one() -> None:
    child = BuildChild()
    try:
        for name, problem in (
            ("rms_norm", "expected the text with the digest 000"),
            ("unheard_of", "is not installed"),
        ):
            refusal = child.ask(BuildRequest(name, {}, "sm_90", "0" * 64), PATIENCE).refusal
            assert refusal is not None
            assert refusal.fault == "template"
            assert str(refusal).startswith(f"template {name}: ")
            assert problem in str(refusal)
    finally:
        child.close()


def test_modules_that_lie_where_it_is_started_are_none_of_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "msgspec.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    child = BuildChild()
    try:
        assert child.ask(BuildRequest("unheard_of", {}, "sm_90", "0" * 64), PATIENCE).refusal is not None
    finally:
        child.close()
    assert not ran.exists()


@pytest.mark.parametrize("child", ["import no_such_module"], indirect=True)
def test_one_that_ends_is_lost_with_the_last_line_it_wrote(child: BuildChild) -> None:
    with pytest.raises(ChildLost, match=r"ended with status 1: ModuleNotFoundError: No module named 'no_such_module'"):
        child.ask(REQUEST, PATIENCE)


@pytest.mark.parametrize("child", [SILENT], indirect=True)
def test_one_that_does_not_answer_in_time_is_lost(child: BuildChild) -> None:
    with pytest.raises(ChildLost, match="did not answer in time"):
        child.ask(REQUEST, 0.01)


@pytest.mark.parametrize("child", [ANSWERS.format("\xff" * 4), ANSWERS.format("\2\0\0\0ab")], indirect=True)
def test_one_that_answers_nonsense_is_lost(child: BuildChild) -> None:
    with pytest.raises(ChildLost, match="answered"):
        child.ask(REQUEST, PATIENCE)


@pytest.mark.parametrize("child", [SILENT], indirect=True)
def test_killing_it_from_another_thread_ends_the_wait_for_its_answer(child: BuildChild) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(child.ask, REQUEST, PATIENCE)
        child.kill()
        with pytest.raises(ChildLost, match="ended with status -9"):
            waiting.result(PATIENCE)


def test_the_compilers_that_it_started_end_with_it_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    os.mkfifo(tmp_path / "held")
    child = BuildChild([sys.executable, "-c", STARTS_A_COMPILER, str(tmp_path / "held")])
    with (tmp_path / "held").open() as held:
        assert held.readline() == "started\n"
        child.close()
        assert select.select([held], [], [], PATIENCE)[0]
        assert held.read() == ""  # the end: nobody holds it any more
    assert list((tmp_path / "temporary").iterdir()) == []


def test_orders_wait_for_each_other_and_each_is_handed_over_whole(tmp_path: Path) -> None:
    child, done = FakeChild(), threading.Event()
    child.may_answer.clear()
    builds = JustInTime(gpu_plan(tmp_path), child.start)
    handed: list[list[int]] = []
    assert builds.order((2, 3), Why.UNPLANNED_ROWS, lambda built: handed.append(list(built)))
    assert builds.order((1,), Why.UNPLANNED_ROWS, lambda built: (handed.append(list(built)), done.set())[0])
    assert not builds.order((3,), Why.UNPLANNED_ROWS, lambda built: None)
    assert builds.numbers()["queued"] == 3
    child.may_answer.set()
    assert done.wait(PATIENCE)
    assert builds.wait(PATIENCE)
    assert handed == [[2, 3], [1]]
    builds.close()
    assert not builds.order((1,), Why.UNPLANNED_ROWS, lambda built: None)


def test_a_process_that_cannot_be_started_turns_building_off(tmp_path: Path) -> None:
    def start() -> BuildChild:
        raise FileNotFoundError("no python")

    builds = JustInTime(gpu_plan(tmp_path), start)
    assert builds.order((2,), Why.UNPLANNED_ROWS, lambda built: None)
    assert builds.wait(PATIENCE)
    assert builds.numbers()["why_off"] == "the process that builds kernels cannot be started: no python"
    assert not builds.order((3,), Why.UNPLANNED_ROWS, lambda built: None)
    builds.close()
