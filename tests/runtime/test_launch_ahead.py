"""Is the next step on the device before the last token is read, and does nothing else change?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hjgc.plan_format.errors import RunError
from hjgc.runtime import BackendRefused, Cancelled, Session
from tests.plans import CONTEXT, small_plan
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import (
    DECODE_GRAPH,
    PATIENCE,
    PREFILL_GRAPH,
    answer,
    captured,
    entry,
    others,
    result,
    runner_of,
    serving,
)


def ahead(session: Session) -> dict[str, Any]:
    return session.report()["launch_ahead"]


def log_reads(device: FakeDevice) -> None:
    device.before_read = lambda: device.log.append("read")


def steps(device: FakeDevice) -> list[str]:
    """The log with one entry a step."""
    return [line for line in device.log if line in ("embed", "read") or line.startswith("replay")]


def test_the_next_step_is_launched_before_the_last_token_is_read() -> None:
    with serving(capture=False) as (session, device), session.request() as request:
        log_reads(device)
        request.prefill([1, 2, 3], {})
        assert steps(device) == ["embed", "read"]  # who wants the first token only leaves nothing behind
        request.decode()
        assert steps(device)[2:] == ["embed", "embed", "read"]
        request.decode()
        assert steps(device)[5:] == ["embed", "read"]
        request.decode(last=True)
        assert steps(device)[7:] == ["read"]
        assert ahead(session) == {"steps": 2, "overruns": 0, "failed": 0, "off": {}}


def test_graphs_are_launched_ahead_as_well() -> None:
    with serving() as (session, device):
        expected = answer(session)
        captured(session)
        device.log.clear()
        log_reads(device)
        assert answer(session) == expected
        replay = "replay decode[14]"
        assert steps(device) == ["replay prefill@4[14]", "read", replay, replay, "read", replay, "read", "read"]


@pytest.mark.parametrize("prompt", [1, 3, 16, 37])
def test_tokens_and_memory_are_the_same_with_and_without(prompt: int) -> None:
    found: list[tuple[list[int], bytes]] = []
    for asynchronous in (True, False):
        with serving(capture=False) as (session, device):
            device.asynchronous = asynchronous
            found.append((answer(session, prompt, tokens=8), device.contents()))
            assert bool(ahead(session)["steps"]) == asynchronous
    assert found[0] == found[1]


def test_the_position_is_that_of_the_token_that_was_read() -> None:
    with serving(capture=False) as (session, _), session.request() as request:
        request.prefill([1, 2, 3], {})
        for cached in (4, 5, 6):
            request.decode()
            assert request.position == cached


def test_no_step_is_launched_past_the_end_of_the_context() -> None:
    with serving(capture=False) as (session, device), session.request() as request:
        request.prefill([1] * (CONTEXT - 2), {})
        device.log.clear()
        request.decode()
        request.decode()
        assert steps(device) == ["embed", "embed"]
        assert ahead(session) == {"steps": 1, "overruns": 0, "failed": 0, "off": {}}


def test_a_step_launched_for_nobody_is_counted_and_changes_nothing_for_the_next_request() -> None:
    with serving(capture=False) as (session, _):
        expected = answer(session)
        with session.request() as request:
            request.prefill([9, 8, 7, 6, 5], {"temperature": 1.0, "seed_low": 3})
            request.decode()
        assert ahead(session)["overruns"] == 1
        assert answer(session) == expected


def test_a_prompt_read_again_in_the_same_request_leaves_the_step_ahead_behind() -> None:
    with serving(capture=False) as (session, _), session.request() as request:
        expected = [request.prefill([1, 2, 3], {}), request.decode(), request.decode()]
        assert [request.prefill([1, 2, 3], {}), request.decode(), request.decode(last=True)] == expected
        assert ahead(session)["overruns"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"logits": True}, "logits"), ({"process": lambda ids, row: None}, "logits_processor")],  # pyright: ignore[reportUnknownLambdaType]
)
def test_a_request_that_comes_between_two_steps_turns_it_off_and_is_counted(
    options: dict[str, Any], reason: str
) -> None:
    with serving(capture=False) as (session, device):
        with session.request(**options) as request:
            request.prefill([1, 2, 3], {})
            request.decode()
            request.decode()
            request.decode(last=True)
        assert device.log.count("embed") == 4
        assert ahead(session) == {"steps": 0, "overruns": 0, "failed": 0, "off": {reason: 2}}
        assert session.metrics()[f"launch_ahead.off.{reason}"] == 2


def test_a_device_that_does_one_thing_at_a_time_is_not_launched_ahead() -> None:
    with serving(capture=False) as (session, device):
        device.asynchronous = False
        answer(session, tokens=4)
        assert device.log.count("embed") == 4
        assert ahead(session)["off"] == {"synchronous_device": 2}


def test_logits_are_refused_to_a_request_that_did_not_say_so() -> None:
    with serving() as (session, _), session.request() as request:
        request.prefill([1], {})
        with pytest.raises(RunError, match=r"session\.request\(logits=True\)"):
            request.logits()
        request.decode()


def fail_after(count: int, error: Exception) -> Callable[[str], None]:
    """The launch after so many fails, every time."""
    left = [count]

    def launch(name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    return launch


@pytest.mark.parametrize("error", [BackendRefused("CUDA_ERROR_LAUNCH_FAILED"), RuntimeError("unforeseen")])
@pytest.mark.parametrize("launches", [0, 5, 13])
def test_a_step_ahead_that_fails_is_the_business_of_the_call_that_wants_it(error: Exception, launches: int) -> None:
    with serving(capture=False) as (session, device):
        expected = answer(session, tokens=5)
        with session.request() as request:
            tokens = [request.prefill([1, 2, 3], {}), request.decode()]
            device.before_launch = fail_after(launches, error)
            tokens.append(request.decode())  # its step was in flight, the one ahead fails
            with pytest.raises((RunError, RuntimeError), match=str(error)):
                request.decode()
            device.before_launch = lambda name: None
            tokens += [request.decode(), request.decode(last=True)]
        assert tokens == expected
        assert ahead(session)["failed"] == 1
        assert session.report()["requests"]["device_errors"] == isinstance(error, BackendRefused)
        assert answer(session, tokens=5) == expected


def test_an_error_that_shows_when_the_token_is_read_fails_that_call_and_is_counted() -> None:
    with serving() as (session, device):
        expected = answer(session)
        captured(session)

        def fail() -> None:
            raise BackendRefused("CUDA_ERROR_ILLEGAL_ADDRESS")

        with session.request() as request:
            tokens = [request.prefill([1, 2, 3], {}), request.decode()]
            device.before_read = fail
            with pytest.raises(RunError, match="refused to run the step: CUDA_ERROR_ILLEGAL_ADDRESS"):
                request.decode()
            device.before_read = lambda: None
            assert entry(session)["in_use"] == 0
            tokens += [request.decode(), request.decode(last=True)]
        assert tokens == expected
        report = session.report()
        assert report["requests"]["device_errors"] == report["requests"]["finished"] - 1 == 1
        assert answer(session) == expected


def test_cancelling_while_the_step_ahead_is_launched_still_gives_the_token() -> None:
    with serving(capture=False) as (session, device):
        expected = answer(session)
        with pytest.raises(Cancelled), session.request() as request:
            request.prefill([1, 2, 3], {})
            request.decode()
            device.before_launch = lambda name: request.cancel() if name == "0.attention" else None
            assert request.decode() == expected[2]
            device.before_launch = lambda name: None
            request.decode()
        assert ahead(session)["failed"] == 0
        assert answer(session) == expected


def test_graphs_of_a_step_in_flight_count_as_used_until_its_token_or_a_later_one_is_read() -> None:
    with serving() as (session, _):
        answer(session)
        captured(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            assert entry(session, "prefill", 4)["in_use"] == entry(session)["in_use"] == 0
            request.decode()
            assert entry(session)["in_use"] == 1
        assert entry(session)["in_use"] == 1  # nobody waited for the overrun
        answer(session, tokens=1)
        assert entry(session)["in_use"] == 0


def test_a_graph_that_an_overrun_uses_is_evicted_only_once_the_overrun_is_done() -> None:
    with serving(graph_bytes=DECODE_GRAPH + PREFILL_GRAPH) as (session, device):
        answer(session)
        captured(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            request.decode()
        runner_of(session).last_use = 0  # the first to go
        waits: list[str] = []

        def wait() -> None:
            name = threading.current_thread().name
            if name == "hjgc-capture":
                waits.append(name)
                device.log.append("the overrun is done")

        device.before_read = wait
        # Runs plainly, and queues a graph that needs room; no token is read before the worker looks for it.
        session._worker.ran_plainly(_warm(session), 0)
        captured(session)
        assert waits
        assert device.log.index("the overrun is done") < device.log.index("release decode[14]")
        assert entry(session)["in_use"] == 0


def _warm(session: Session) -> Any:
    return runner_of(session, "prefill", 2)


def test_closing_waits_for_the_step_in_flight() -> None:
    device = FakeDevice(small_plan())
    with others() as submit:
        session = Session(device.plan, device)
        answer(session)
        captured(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            request.decode()
            drained = threading.Event()
            snapshot = device.snapshot

            def note(*arguments: Any) -> Any:
                drained.set()
                return snapshot(*arguments)

            device.snapshot = note  # type: ignore[method-assign]
            result(submit(session.close))
            assert drained.wait(PATIENCE)
            with pytest.raises(RunError, match="expected the plan to be open, found it closed"):
                request.decode()
        assert device.living == []
