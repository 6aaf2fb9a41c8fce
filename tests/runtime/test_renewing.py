"""What becomes of graphs, and of prompts, while the code that a session runs changes?"""

from __future__ import annotations

import threading

import pytest

from hjgc.plan_format.errors import RunError
from hjgc.runtime.backend import BackendRefused
from hjgc.runtime.runner import IllegalTransition, SegmentRunner, State, Stretch
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import PATIENCE, answer, captured, entry, serving


def test_a_graph_being_built_of_code_that_gives_way_is_finished_first_and_goes() -> None:
    with serving() as (session, device):
        device.build_may_finish.clear()
        answer(session, 3, tokens=3)
        assert device.build_started.wait(PATIENCE)
        seen: list[int] = []

        def change() -> None:
            with session._turns.between(), session._worker.renewing(session._router.runners):
                seen.append(len(device.living))

        thread = threading.Thread(target=change)
        thread.start()
        device.build_may_finish.set()
        thread.join(PATIENCE)
        assert seen == [0]
        assert {runner.state for runner in session._router.runners} == {State.COLD}
        assert session.report()["budget"]["used"] == 0
        captured(session)
        answer(session, 3, tokens=3)
        captured(session)
        assert entry(session)["state"] == "PROMOTED"


def test_a_refused_segment_gets_another_chance_with_other_code() -> None:
    with serving() as (session, device):
        device.refuse = lambda graph: "no"
        answer(session, 3, tokens=2)
        captured(session)
        assert entry(session)["state"] == "REFUSED"
        with session._turns.between(), session._worker.renewing(session._router.runners):
            device.refuse = lambda graph: None
        assert (entry(session)["state"], entry(session)["why"]) == ("COLD", "")
        answer(session, 3, tokens=3)
        captured(session)
        assert entry(session)["state"] == "PROMOTED"


def test_the_graphs_of_a_step_launched_for_nobody_are_waited_for() -> None:
    with serving() as (session, device):
        answer(session, 3, tokens=3)
        captured(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            request.decode()  # and the step behind it, which nobody will ask for
        with session._turns.between(), session._worker.renewing(session._router.runners):
            assert device.living == []


def test_the_graphs_of_a_step_ahead_whose_token_could_not_be_sent_for_are_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as (session, device):
        answer(session, 3, tokens=3)
        captured(session)
        sent: list[int] = []

        def send() -> int:
            if sent:
                raise BackendRefused("CUDA_ERROR_OUT_OF_MEMORY")
            sent.append(FakeDevice.send_token(device))
            return sent[0]

        with session.request() as request:
            request.prefill([1, 2, 3], {})
            monkeypatch.setattr(device, "send_token", send)
            request.decode()
        assert (session.report()["launch_ahead"]["failed"], entry(session)["in_use"]) == (1, 0)
        with session._turns.between(), session._worker.renewing(session._router.runners):
            assert device.living == []


def test_a_runner_whose_graph_is_used_is_not_renewed() -> None:
    runner = SegmentRunner(Stretch("decode", "default", 0, (0,)), 1, 1)
    runner.uses = 1
    with pytest.raises(IllegalTransition, match="renewed while 1 steps use its graph"):
        runner.renew()


@pytest.mark.parametrize(
    ("ready", "length", "chunks"),
    [
        ((1, 4), 11, [4, 4, 3]),
        ((1, 16), 11, [11]),
        ((1, 16), 40, [16, 16, 8]),
        ((1, 2, 3, 4, 9, 10, 11, 12), 11, [11]),
        ((1, 2, 3, 4, 9, 10, 11, 12), 16, [12, 4]),
        ((1, 2, 3, 4, 9, 10, 11, 12), 30, [12, 12, 4, 2]),
    ],
)
def test_a_prompt_is_cut_into_as_few_parts_as_there_is_code_for(
    ready: tuple[int, ...], length: int, chunks: list[int]
) -> None:
    rows = set(range(1, ready[1] + 1)) if len(ready) == 2 else set(ready)
    with serving(capture=False) as (session, device):
        device.runnable = lambda phase, most: max(row for row in rows if row <= most)
        asked: list[tuple[str, int]] = []
        session._router.lacks = lambda phase, most: asked.append((phase, most))
        answer(session, length, tokens=1)
        found = [e for e in session.report()["segments"] if e["kind"] == "static" and e["phase"] == "prefill"]
        assert sum(e["plain_runs"] for e in found) == len(chunks)
        assert len(asked) <= 1, "one prompt asks for one thing"
        with session.request() as request:
            assert list(request._chunks(length)) == chunks


def test_a_prompt_that_there_is_no_code_for_at_all_says_so() -> None:
    with serving(capture=False) as (session, device):
        device.runnable = lambda phase, most: 0
        with pytest.raises(RunError, match="expected kernels of prefill for 3 rows, found none built"):
            answer(session, 3)
