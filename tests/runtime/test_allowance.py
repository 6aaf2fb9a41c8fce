"""Do checks take their share of the time, and no more?"""

from __future__ import annotations

import threading

import pytest

from hjgc.runtime import worker
from hjgc.runtime.allowance import CUT_SHORT, SHARE, Allowance, until_good_moment
from hjgc.runtime.gate import Interrupted
from hjgc.runtime.runner import SegmentRunner
from tests.runtime.serving import PATIENCE, answer, captured, entry, serving


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_work_is_paid_for_afterwards_at_the_given_share() -> None:
    clock = Clock()
    allowance = Allowance(0.02, 0.05, clock)
    assert allowance.pause() == 0
    clock.now = 0.1
    allowance.spend(0.1)
    assert allowance.pause() == pytest.approx(2.5)
    clock.now = 2.59
    assert allowance.pause() == pytest.approx(0.01)
    clock.now = 2.61
    assert allowance.pause() == 0


def test_what_was_not_used_is_kept_up_to_a_limit() -> None:
    clock = Clock()
    allowance = Allowance(0.02, 0.05, clock)
    clock.now = 3600
    allowance.spend(0.15)
    assert allowance.pause() == pytest.approx(5)


def test_over_an_hour_of_work_that_never_waits_longer_than_it_must_the_share_is_kept() -> None:
    clock = Clock()
    allowance = Allowance(0.02, 0.05, clock)
    worked = 0.0
    while clock.now < 3600:
        clock.now += allowance.pause()
        clock.now += 0.03
        worked += 0.03
        allowance.spend(0.03)
    assert worked / clock.now == pytest.approx(0.02, rel=0.01)


def test_checks_rest_while_nothing_is_left_of_it_and_go_on_for_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def pause(self: Allowance) -> float:
        asked.set()
        return 1000.0

    monkeypatch.setattr(Allowance, "pause", pause)
    with serving() as (session, _):
        answer(session, 4, tokens=1)
        assert asked.wait(PATIENCE)
        assert entry(session, "prefill", 4)["state"] == "BUILT"
        assert session.report()["worker"]["checks_paused_for"] == 1000.0
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"


def test_a_check_begins_when_a_request_has_just_ended_or_ended_long_ago() -> None:
    assert until_good_moment(0.001) == until_good_moment(2.5) == 0
    assert until_good_moment(0.25) == 0.75


def test_one_check_follows_each_request_and_none_comes_later_in_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allowance says yes to all; the clock says that the gap is as old as the first check made it."""
    checked, asked, idle = threading.Semaphore(0), threading.Semaphore(0), [0.0]

    def moment(seconds: float) -> float:
        asked.release()
        return idle[0]

    def spend(self: Allowance, seconds: float) -> None:
        idle[0] = 1000.0
        checked.release()

    monkeypatch.setattr(worker, "until_good_moment", moment)
    monkeypatch.setattr(Allowance, "pause", lambda self: 0.0)
    monkeypatch.setattr(Allowance, "spend", spend)
    with serving() as (session, _):
        for count in (1, 2):
            idle[0] = 0.0
            answer(session, 4, tokens=1)
            assert asked.acquire(timeout=PATIENCE) and checked.acquire(timeout=PATIENCE)
            if count == 1:
                assert asked.acquire(timeout=PATIENCE)  # it looked again, found the moment gone, and did nothing
            assert entry(session, "prefill", 4)["state"] == ("BUILT" if count == 1 else "PROMOTED")


def test_what_checks_take_is_counted_unless_somebody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    took = threading.Event()

    def spend(self: Allowance, seconds: float) -> None:
        spent.append(seconds)
        took.set()

    monkeypatch.setattr(Allowance, "spend", spend)
    monkeypatch.setattr(Allowance, "pause", lambda self: 0.0 if not spent else 1000.0)
    with serving() as (session, _):
        answer(session, 4, tokens=1)
        assert took.wait(PATIENCE)
        assert spent == [pytest.approx(session.report()["worker"]["check_seconds"], abs=1e-5)]
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "PROMOTED" and len(spent) == 1


def test_a_caller_who_is_back_at_once_has_his_graph_within_seconds() -> None:
    assert worker.PATIENCE * CUT_SHORT / SHARE <= 10


def test_a_check_that_a_request_cut_short_costs_more_than_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    took = threading.Event()

    def interrupted(self: worker.CaptureWorker, runner: SegmentRunner) -> None:
        raise Interrupted

    def spend(self: Allowance, seconds: float) -> None:
        spent.append(seconds)
        took.set()

    monkeypatch.setattr(Allowance, "pause", lambda self: 0.0 if not spent else 1000.0)
    monkeypatch.setattr(Allowance, "spend", spend)
    monkeypatch.setattr(worker.CaptureWorker, "_judge", interrupted)
    with serving() as (session, _):
        answer(session, 4, tokens=1)
        assert took.wait(PATIENCE)
        assert spent == [CUT_SHORT]
