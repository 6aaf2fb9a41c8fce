"""Are callers served in the order they came, and does whoever gives up leave the queue?"""

from __future__ import annotations

import threading

import pytest

from hjgc.plan_format.errors import RunError
from hjgc.runtime import Cancelled, DeadlineExceeded, Request, Session, SessionClosed
from hjgc.runtime.turns import Ticket, Turns
from tests.runtime.serving import Arrivals, answer, others, result, serving


def test_callers_are_served_first_come_first_served() -> None:
    served: list[int] = []

    def ask(session: Session, number: int) -> None:
        with session.request() as request:
            served.append(number)
            request.prefill([1, 2], {})

    with serving() as (session, _), others() as submit:
        arrivals = Arrivals(session)
        with session.request():
            arrivals.wait()
            waiting = []
            for number in range(5):
                waiting.append(submit(lambda number=number: ask(session, number)))
                arrivals.wait()
            assert served == []
        for future in waiting:
            result(future)
    assert served == [0, 1, 2, 3, 4]


def test_a_caller_cancelled_while_waiting_leaves_the_queue_and_the_next_is_served() -> None:
    def enter(request: Request) -> str:
        with request:
            return "served"

    with serving() as (session, _), others() as submit:
        arrivals = Arrivals(session)
        first, second = session.request(), session.request()
        with session.request():
            arrivals.wait()
            waiting = submit(lambda: enter(first))
            arrivals.wait()
            behind = submit(lambda: enter(second))
            arrivals.wait()
            first.cancel()
            with pytest.raises(Cancelled):
                result(waiting)
            assert first.cancelled and not second.cancelled
            assert session.report()["requests"]["waiting"] == 1
        assert result(behind) == "served"
        assert session.report()["requests"]["cancelled"] == 1


def test_a_request_cancelled_before_it_enters_never_gets_the_device() -> None:
    with serving() as (session, device):
        request = session.request()
        request.cancel()
        with pytest.raises(Cancelled), request:
            pytest.fail("served")
        assert device.log == []
        answer(session)


def test_a_deadline_that_passes_while_waiting_raises_and_leaves_the_queue() -> None:
    with serving() as (session, _), others() as submit:
        with session.request():
            waiting = submit(lambda: session.request(deadline=0.01).__enter__())
            with pytest.raises(DeadlineExceeded, match=r"within 0.01 s"):
                result(waiting)
            assert session.report()["requests"]["waiting"] == 0
        assert session.report()["requests"]["expired"] == 1
        answer(session)


@pytest.mark.parametrize("deadline", [0.0, -1.0])
def test_a_deadline_in_the_past_is_exceeded_at_once(deadline: float) -> None:
    with serving() as (session, _):
        request = session.request(deadline=deadline)
        assert request.expired
        with pytest.raises(DeadlineExceeded), request:
            pytest.fail("served")


def test_an_endless_deadline_is_none() -> None:
    with serving() as (session, _), others() as submit:
        arrivals = Arrivals(session)
        with session.request(deadline=float("inf")):
            arrivals.wait()
            waiting = submit(lambda: session.request(deadline=float("inf")).__enter__())
            arrivals.wait()
        assert not result(waiting).expired


def test_a_deadline_that_is_no_number_is_refused() -> None:
    with serving() as (session, _), pytest.raises(RunError, match="found nan"):
        session.request(deadline=float("nan"))


def test_a_request_is_entered_once() -> None:
    with serving() as (session, _):
        with session.request() as request, pytest.raises(RunError, match="that is active"):
            request.__enter__()
        with pytest.raises(RunError, match="that is over"):
            request.__enter__()


def test_closing_sends_those_who_wait_away() -> None:
    with serving() as (session, device), others() as submit:
        arrivals = Arrivals(session)
        with session.request() as request:
            arrivals.wait()
            waiting = submit(lambda: answer(session))
            arrivals.wait()
            session.close()
            with pytest.raises(SessionClosed):
                result(waiting)
            with pytest.raises(SessionClosed):
                request.prefill([1], {})
        with pytest.raises(SessionClosed):
            session.request()
        assert device.closed


def test_the_gate_gets_the_device_only_when_nobody_has_or_wants_it() -> None:
    turns, caller = Turns(), Ticket()
    turns.take(caller)
    assert not turns.take_if_idle()
    turns.give_back(caller, None)
    assert turns.take_if_idle()
    assert not turns.take_if_idle()
    assert not turns.wanted
    turns.give_back_gate()
    turns.take(Ticket())


def test_who_waits_for_the_device_between_two_requests_is_no_request_that_waits() -> None:
    with serving(capture=False) as (session, _), others() as submit:
        arrivals = Arrivals(session)

        def change() -> None:
            with session._turns.between():
                assert session.report()["requests"]["waiting"] == 1

        with session.request():
            arrivals.wait()
            changed = submit(change)
            arrivals.wait()
            assert session.report()["requests"]["waiting"] == 0
            answered = submit(lambda: answer(session))
            arrivals.wait()
            assert session.report()["requests"]["waiting"] == 1
        result(changed)
        result(answered)


def test_the_listener_hears_of_every_gap_and_only_of_gaps() -> None:
    turns, gaps = Turns(), threading.Semaphore(0)
    turns.on_idle = gaps.release
    first, second = Ticket(), Ticket()
    turns.take(first)
    turns._waiting.append(second)
    turns.give_back(first, None)
    assert not gaps.acquire(blocking=False)
    turns._waiting.clear()
    turns.take(second)
    turns.give_back(second, None)
    assert gaps.acquire(blocking=False)


def test_the_listener_hears_when_the_last_who_waited_gives_up() -> None:
    turns, gaps = Turns(), threading.Semaphore(0)
    turns.on_idle = gaps.release
    gone = Ticket()
    gone.cancelled = True
    with pytest.raises(Cancelled):
        turns.take(gone)
    assert gaps.acquire(blocking=False)
