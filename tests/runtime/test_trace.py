"""Does a trace say what a session did, in the form that viewers of traces read, and is it gone once it ends?"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hjgc.plan_format import load
from hjgc.plan_format.errors import RunError
from hjgc.runtime import Session, trace
from hjgc.runtime.backend import BackendRefused
from hjgc.runtime.errors import SessionClosed
from hjgc.runtime.opening import open_session
from hjgc.runtime.trace import Trace
from tests.runtime.gpu_plan import FakeChild, GpuDriver, open_gpu, write_gpu_plan
from tests.runtime.serving import answer, captured, serving
from tests.tools.plans_to_compare import compiled_plan

Event = Mapping[str, Any]
REQUIRED = {"M": {"args"}, "X": {"cat", "dur", "args"}, "i": {"cat", "s", "args"}}


def check(data: Mapping[str, Any]) -> list[Event]:
    """The Trace Event Format, as far as it is used here: fields, their types, and calls within calls on each thread."""
    assert set(data) == {"traceEvents", "displayTimeUnit", "otherData"} and data["displayTimeUnit"] in ("ms", "ns")
    events = json.loads(json.dumps(data, allow_nan=False))["traceEvents"]
    for event in events:
        assert {"name", "ph", "pid", "tid", "ts"} | REQUIRED[event["ph"]] == set(event)
        assert isinstance(event["name"], str) and event["name"]
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
        assert all(isinstance(event[key], int | float) and event[key] >= 0 for key in ("ts", "dur") if key in event)
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    calls = [event for event in events if event["ph"] == "X"]
    assert {(e["pid"], e["tid"]) for e in calls} <= named
    for place in named:
        check_nesting([event for event in calls if (event["pid"], event["tid"]) == place])
    return events


def check_nesting(calls: Sequence[Event]) -> None:
    around: list[float] = []
    for event in sorted(calls, key=lambda event: (event["ts"], -event["dur"])):
        while around and around[-1] <= event["ts"]:
            around.pop()
        assert not around or event["ts"] + event["dur"] <= around[-1] + 0.01  # rounded to nanoseconds
        around.append(event["ts"] + event["dur"])


def watched(session: Session, tokens: int = 3) -> tuple[Trace, list[Event]]:
    with session.trace() as found:
        answer(session, 8, tokens=tokens)
        captured(session)
        answer(session, 8, tokens=tokens)
    return found, check(found.as_data())


def names(events: Sequence[Event], category: str) -> list[str]:
    return [event["name"] for event in events if event.get("cat") == category]


def test_requests_segments_waits_and_what_the_worker_does_are_on_the_timeline() -> None:
    with serving() as (session, _):
        _, events = watched(session)
    assert names(events, "request") == ["first token", "token", "token"] * 2
    assert names(events, "segment").count("prefill, replay") >= 1
    assert "prefill, launch by launch" in names(events, "segment")
    assert names(events, "queue") == ["wait for the device"] * 2
    assert len(names(events, "wait")) == 6
    work = names(events, "capture")
    assert "build prefill for 8 rows" in work and "promoted prefill/default/0/8" in work
    assert any(name.startswith("check decode/") for name in work)
    threads = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert len(threads) == 2 and any("capture" in name for name in threads)


def test_a_replay_says_which_graph_served_how_many_rows() -> None:
    with serving() as (session, _):
        _, events = watched(session)
    said = [e["args"] for e in events if e["name"] == "prefill, replay" and "graph for rows" in e["args"]]
    assert said[-1]["rows"] == said[-1]["graph for rows"] == 8 and said[-1]["segment"] == "0"
    assert said[-1]["from"] == "embed" and "ONNX nodes" not in said[-1]


def test_an_eviction_is_seen() -> None:
    with serving(graph_bytes=3000) as (session, _), session.trace() as found:
        for length in (2, 4, 8, 16, 2):
            answer(session, length, tokens=1)
            captured(session)
    assert any(name.startswith("evict prefill/default/0/") for name in names(check(found.as_data()), "capture"))


def test_nothing_is_left_of_a_trace_that_ended_and_tokens_are_the_same_under_it() -> None:
    with serving() as (session, device):
        before = answer(session)
        untouched = [set(vars(part)) for part in (session, device, session._turns, session._worker)]
        found, events = watched(session)
        assert [set(vars(part)) for part in (session, device, session._turns, session._worker)] == untouched
        with session.trace():
            assert answer(session) == before
        answer(session)
        found.stop()
        assert check(found.as_data()) == events


def test_one_trace_of_a_session_at_a_time_and_closing_ends_it() -> None:
    with serving() as (session, _):
        first = session.trace().start()
        with pytest.raises(RunError, match="found one; stop that trace first"):
            session.trace().start()
        answer(session)
    assert session.watcher is None
    assert "first token" in names(check(first.as_data()), "request")


def test_a_request_that_fails_is_on_the_timeline_too() -> None:
    with serving() as (session, device), session.trace() as found:

        def fail(name: str) -> None:
            raise ValueError("broken")

        device.before_launch = fail
        with pytest.raises(ValueError, match="broken"):
            answer(session)
    assert names(check(found.as_data()), "request") == ["first token"]


def test_a_trace_that_nobody_ends_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST_EVENTS", 10)
    with serving() as (session, _):
        found, events = watched(session)
    assert len([event for event in events if event["ph"] != "M"]) == 10 and found.dropped > 5


def test_a_gpu_tells_its_own_times(tmp_path: Path) -> None:
    driver = GpuDriver("sm_90")
    with open_gpu(write_gpu_plan(tmp_path), driver, FakeChild()) as session, session.trace() as found:
        answer(session, 4, tokens=2)
    events = check(found.as_data())
    mine = [event for event in events if event.get("cat") == "device"]
    assert [event["name"] for event in mine][:2] == ["prefill, launch by launch", "decode, launch by launch"]
    assert all(event["dur"] == 1000 and event["pid"] != 1 for event in mine)  # a millisecond between two marks
    assert [event["ts"] for event in mine] == [1000 * (2 * i + 1) for i in range(len(mine))]
    assert driver.living_timers == 0


def test_a_gpu_that_fails_keeps_its_times(tmp_path: Path) -> None:
    driver = GpuDriver("sm_90")
    with open_gpu(write_gpu_plan(tmp_path), driver, FakeChild()) as session, session.trace() as found:
        answer(session, 4, tokens=2)
        driver.refuses.add("milliseconds")
    assert found.dropped and "device" not in {event.get("cat") for event in check(found.as_data())}
    assert driver.living_timers == 0


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_marks_are_given_back_as_the_trace_goes_on(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "COLLECTED", 4)
    monkeypatch.setattr(trace, "AHEAD", 2)
    monkeypatch.setattr(trace, "MOST_EVENTS", most)
    driver = GpuDriver("sm_90")
    with open_gpu(write_gpu_plan(tmp_path), driver, FakeChild()) as session, session.trace() as found:
        answer(session, 4, tokens=9)
        assert driver.living_timers <= 12
        data = found.as_data()
    times = [event["ts"] for event in check(data) if event.get("cat") == "device"]
    assert len(times) == (9 if most == 1000 else len(times)) and times == sorted(times)
    assert driver.living_timers == 0


def test_a_device_that_refuses_marks_serves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = GpuDriver("sm_90")
    with open_gpu(write_gpu_plan(tmp_path), driver, FakeChild()) as session:
        expected = answer(session, 4, tokens=2)
        with session.trace() as found:
            driver.refuses.add("make_timer")
            assert answer(session, 4, tokens=2) == expected
        with pytest.raises(BackendRefused):
            session.trace().start()
        driver.refuses.clear()
        with session.trace():
            pass
    assert found.dropped and session.closed and driver.living_timers == 0
    with pytest.raises(SessionClosed):
        session.trace().start()


def test_a_request_that_outlives_a_trace_is_not_on_it() -> None:
    with serving() as (session, _):
        with session.trace() as found:
            request = session.request().__enter__()
            request.prefill([1, 2, 3], {})
        seen = check(found.as_data())
        request.decode()
        request.__exit__(None, None, None)
        assert check(found.as_data()) == seen


def test_threads_that_come_one_after_the_other_are_told_apart() -> None:
    with serving() as (session, _), session.trace() as found:
        for number in range(3):
            thread = threading.Thread(target=answer, args=(session,), name=f"caller {number}")
            thread.start()
            thread.join()
    named = {event["args"]["name"] for event in check(found.as_data()) if event["name"] == "thread_name"}
    assert {"caller 0", "caller 1", "caller 2"} <= named


def test_a_plan_from_a_file_names_the_onnx_nodes_and_the_file_is_written_whole(tmp_path: Path) -> None:
    path = compiled_plan(tmp_path)
    with open_session(path, device="cpu") as session, session.trace() as found:
        with session.request() as request:
            request.prefill([1, 2, 3], {})
        found.save(tmp_path / "trace.json")
    events = check(json.loads((tmp_path / "trace.json").read_text()))
    (segment,) = [event for event in events if event["name"] == "prefill, launch by launch"]
    with load(path) as file:
        debug = file.debug()
    assert debug is not None
    first, last = (debug.phases[0].launches[place].nodes for place in (0, -1))
    assert segment["args"]["ONNX nodes"] == " … ".join([*first[:1], *last[-1:]])


def test_a_functions_call_is_on_the_timeline(tmp_path: Path) -> None:
    path = compiled_plan(tmp_path, function="steer")
    with (
        open_session(path, device="cpu", functions={"steer": lambda rows: None}) as session,
        session.trace() as found,
        session.request() as request,
    ):
        request.prefill([1, 2, 3], {})
    (call,) = [event for event in check(found.as_data()) if event.get("cat") == "host"]
    assert call["args"]["ONNX nodes"].startswith("host/steer")
