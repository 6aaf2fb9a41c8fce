"""Do checks take their share of the time, and no more?"""

from __future__ import annotations

import threading

import pytest

from hjgc.runtime.allowance import Allowance
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
        assert session.report()["worker"]["next_check_in"] == 1000.0
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"


def test_what_checks_took_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []
    monkeypatch.setattr(Allowance, "spend", lambda self, seconds: spent.append(seconds))
    with serving() as (session, _):
        answer(session, 4)
        captured(session)
        assert sum(spent) == pytest.approx(session.report()["worker"]["check_seconds"], abs=1e-5)
