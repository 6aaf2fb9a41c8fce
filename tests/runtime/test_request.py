"""Does a request answer, say what is wrong with what it is asked, and end cleanly however it ends?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.sizes import SizeDeclaration
from hjgc.plan_format.structs import Plan
from hjgc.runtime import BackendRefused, Cancelled, ContextFull, DeadlineExceeded, Session
from hjgc.runtime.backend import Ids
from tests.plans import CONTEXT, VOCABULARY, small_plan
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import answer, captured, serving

DEFAULT = [launch.name for launch in small_plan().phase("decode").launches if launch.name != "caller"]
PROMPT_ONLY = DEFAULT[:8]


def test_a_request_runs_the_prompt_then_one_step_a_token() -> None:
    with serving(capture=False) as (session, device):
        with session.request(logits=True) as request:
            assert request.position == 0
            first = request.prefill([5, 6, 7], {})
            assert request.position == 3
            second = request.decode()
            assert request.position == 4
            assert request.logits().shape == (VOCABULARY,)
            assert int(request.logits().argmax()) == second
        assert device.log == DEFAULT * 2
        assert list(device._state("token_history").view("<i4")[:5]) == [5, 6, 7, first, second]


def test_a_long_prompt_is_cut_and_only_its_last_part_is_sampled() -> None:
    with serving(capture=False) as (session, device):
        with session.request() as request:
            request.prefill(list(range(37)), {})
            assert request.position == 37
        assert device.log == PROMPT_ONLY * 2 + DEFAULT


def with_prompts_of(low: int, high: int) -> Plan:
    """A plan whose prefill takes `low` to `high` tokens a call."""
    plan = small_plan(buckets=(2, 6, high))
    prefill = plan.phase("prefill")
    sizes = (SizeDeclaration("tokens", low, high, "key"), *prefill.sizes[1:])
    return msgspec.structs.replace(plan, phases=(msgspec.structs.replace(prefill, sizes=sizes), plan.phase("decode")))


def test_no_part_of_a_prompt_is_shorter_than_the_plan_allows() -> None:
    parts: list[int] = []
    device = FakeDevice(with_prompts_of(4, 14))
    write = device.write_parameters

    def note(values: Any, prompt: Ids | None = None) -> None:
        if "start" in values:
            parts.append(values["length"])
        write(values, prompt)

    with Session(device.plan, device, capture=False) as session, session.request() as request:
        device.write_parameters = note  # type: ignore[method-assign]
        request.prefill(list(range(16)), {})
        with pytest.raises(RunError, match="at least 4 tokens, found 3"):
            request.prefill([1, 2, 3], {})
    assert [length for length in parts if length > 1] == [12, 4]


def test_a_prompt_that_fills_the_context_gives_one_token_and_no_second() -> None:
    with serving() as (session, _), session.request() as request:
        token = request.prefill([1] * CONTEXT, {})
        assert 0 <= token < VOCABULARY
        with pytest.raises(ContextFull, match=f"fewer than {CONTEXT} tokens"):
            request.decode()
        assert request.position == CONTEXT


def test_decoding_stops_cleanly_at_the_end_of_the_context() -> None:
    with serving() as (session, _), session.request() as request:
        request.prefill([1] * (CONTEXT - 2), {})
        request.decode()
        request.decode()
        with pytest.raises(ContextFull):
            request.decode()


@pytest.mark.parametrize(
    ("ids", "sampling", "complaint"),
    [
        ([], {}, "at least one token, found an empty one"),
        ([1] * (CONTEXT + 1), {}, f"at most {CONTEXT} tokens .*, found {CONTEXT + 1}"),
        ([1, VOCABULARY], {}, f"from 0 to {VOCABULARY - 1}, found {VOCABULARY} at place 1"),
        ([-1], {}, "found -1 at place 0"),
        ([1.5], {}, "expected token ids"),
        ([1], {"temprature": 1.0}, "found temprature"),
        ([1], {"temperature": float("nan")}, "finite number for temperature, found nan"),
    ],
)
def test_a_bad_prompt_is_refused_with_a_sentence_and_the_request_goes_on(
    ids: list[int], sampling: dict[str, float], complaint: str
) -> None:
    with serving() as (session, device), session.request() as request:
        with pytest.raises(RunError, match=complaint):
            request.prefill(ids, sampling)
        assert device.log == []
        request.prefill(np.array([1, 2], np.int64), {})  # type: ignore[arg-type]


def test_steps_out_of_order_are_refused() -> None:
    with serving() as (session, _):
        request = session.request()
        with pytest.raises(RunError, match="that is new"):
            request.prefill([1], {})
        with request:
            for step in (request.decode, request.logits):
                with pytest.raises(RunError, match="call prefill"):
                    step()
        with pytest.raises(RunError, match="that is over"):
            request.decode()


def test_sampling_parameters_do_not_leak_into_the_next_request() -> None:
    with serving(capture=False) as (session, device):
        seen: list[tuple[float, float]] = []

        def look(name: str) -> None:
            if name == "embed":
                words = device._parameters.view("<f4")
                seen.append((float(words[3]), float(words[4])))

        device.before_launch = look
        with session.request() as request:
            request.prefill([1], {"temperature": 0.5, "top_p": 0.25})
        answer(session, tokens=1)
        assert seen == [(0.5, 0.25), (0.0, 1.0)]


def test_a_logits_processor_is_called_between_two_segments_of_every_step() -> None:
    seen: list[list[int]] = []

    def prefer_seven(ids: Any, row: Any) -> None:
        seen.append(ids.tolist())
        row[7] = 100.0

    with serving() as (session, device):
        assert answer(session, [3, 4], tokens=3, process=prefer_seven) == [7, 7, 7]
        assert seen == [[3, 4], [3, 4, 7], [3, 4, 7, 7]]
        captured(session)
        device.log.clear()
        assert answer(session, [3, 4], tokens=2, process=prefer_seven) == [7, 7]
        prefill = ["replay prefill@2[13]", "host caller", "replay prefill@2[1]"]
        decode = ["replay decode[13]", "host caller", "replay decode[1]"]
        assert device.log == prefill + decode


def test_a_logits_processor_that_raises_ends_its_own_step_only() -> None:
    def fail(ids: Any, row: Any) -> None:
        raise ValueError("mine")

    with serving() as (session, _):
        expected = answer(session)
        with pytest.raises(ValueError, match="mine"):
            answer(session, process=fail)
        assert answer(session) == expected
        assert session.report()["requests"]["failed"] == 1


def test_a_plan_without_the_schedule_refuses_a_logits_processor_before_it_waits() -> None:
    plan = small_plan()
    phases = tuple(msgspec.structs.replace(phase, schedules=phase.schedules[:1]) for phase in plan.phases)
    bare = msgspec.structs.replace(plan, phases=phases)
    with serving(bare) as (session, _):
        with pytest.raises(RunError, match="'logits_processor' for prefill"):
            session.request(process=lambda ids, row: None)
        with session.request() as request, pytest.raises(RunError, match="no schedule 'prompt_only'"):
            request.prefill([1] * 20, {})
        answer(session)


def test_a_plan_without_decode_is_refused() -> None:
    plan = msgspec.structs.replace(small_plan(), phases=(small_plan().phase("prefill"),))
    with pytest.raises(RunError, match="found prefill: it has no decode"):
        Session(plan, FakeDevice(plan))


def test_a_plan_for_another_target_is_refused() -> None:
    plan = msgspec.structs.replace(small_plan(), targets=("sm_90",))
    with pytest.raises(RunError, match="expected a plan for cpu, found one for sm_90"):
        Session(plan, FakeDevice(plan))


def test_cancelling_stops_a_prompt_between_two_launches() -> None:
    with serving(capture=False) as (session, device):
        expected = answer(session)
        device.log.clear()
        with session.request() as request:
            device.before_launch = lambda name: request.cancel() if name == "0.attention" else None
            with pytest.raises(Cancelled):
                request.prefill(list(range(16)), {})
            assert device.log[-1] == "0.attention"
            assert request.cancelled
            with pytest.raises(Cancelled):
                request.prefill([1], {})
        device.before_launch = lambda name: None
        assert answer(session) == expected
        assert session.report()["requests"]["cancelled"] == 1


def test_cancelling_between_two_tokens_ends_the_answer() -> None:
    with serving() as (session, _):
        with pytest.raises(Cancelled), session.request() as request:
            request.prefill([1], {})
            request.decode()
            request.cancel()
            request.decode()
        answer(session)


def test_a_deadline_that_passes_while_running_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (session, _):
        with pytest.raises(DeadlineExceeded), session.request(deadline=3600) as request:
            request.prefill([1], {})
            monkeypatch.setattr(request._ticket, "_until", 0.0)
            assert request.expired
            request.decode()
        assert session.report()["requests"]["expired"] == 1
        answer(session)


def test_a_consumer_who_walks_away_gives_the_device_back() -> None:
    def tokens(session: Session) -> Iterator[int]:
        with session.request() as request:
            yield request.prefill([1, 2, 3], {})
            while True:
                yield request.decode()

    with serving() as (session, _):
        stream = tokens(session)
        next(stream)
        next(stream)
        del stream
        answer(session)
        assert session.report()["requests"]["abandoned"] == 1


@pytest.mark.parametrize("error", [BackendRefused("CUDA_ERROR_LAUNCH_FAILED"), RuntimeError("unforeseen")])
def test_a_replay_that_fails_ends_its_request_only_and_frees_its_graph(error: Exception) -> None:
    with serving() as (session, device):
        expected = answer(session)
        captured(session)
        device.replay_error = error
        with pytest.raises((RunError, RuntimeError), match=str(error)) as caught:
            answer(session)
        assert isinstance(caught.value, RunError) == isinstance(error, BackendRefused)
        device.replay_error = None
        assert all(entry.get("in_use", 0) == 0 for entry in session.report()["segments"])
        assert answer(session) == expected


def test_decode_can_be_tried_again_after_a_failed_step() -> None:
    with serving(capture=False) as (session, device):
        expected = answer(session, tokens=3)
        with session.request() as request:
            tokens = [request.prefill([1, 2, 3], {}), request.decode(last=True)]

            def fail(name: str) -> None:
                raise RuntimeError(name)

            device.before_launch = fail
            with pytest.raises(RuntimeError):
                request.decode()
            device.before_launch = lambda name: None
            assert [*tokens, request.decode()] == expected
