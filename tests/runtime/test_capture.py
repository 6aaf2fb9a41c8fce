"""Are graphs built behind the traffic, within the budget, without ever delaying or breaking a request?"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from hjgc.plan_format.errors import RunError
from hjgc.runtime import BackendRefused, Session, worker
from hjgc.runtime.budget import Budget
from hjgc.runtime.runner import SegmentRunner, State, Stretch
from tests.plans import small_plan
from tests.runtime.fake_device import FakeDevice, FakeGraph
from tests.runtime.serving import (
    DECODE_GRAPH,
    PATIENCE,
    PREFILL_GRAPH,
    Arrivals,
    answer,
    captured,
    entry,
    others,
    result,
    runner_of,
    serving,
    when_built,
)


def test_nothing_is_captured_before_traffic_asks() -> None:
    with serving() as (session, device):
        captured(session)
        assert device.log == []
        assert {e["state"] for e in session.report()["segments"] if e["kind"] == "static"} == {"COLD"}


def test_the_first_request_runs_plainly_and_the_next_by_graphs_with_the_same_tokens() -> None:
    with serving() as (session, device):
        first = answer(session, 3, tokens=3)
        captured(session)
        device.log.clear()
        assert answer(session, 3, tokens=3) == first
        assert device.log == ["replay prefill@4[14]", "replay decode[14]", "replay decode[14]"]
        decode = entry(session)
        assert decode["history"] == ["COLD -> WARM", "WARM -> QUEUED", "QUEUED -> BUILT", "BUILT -> PROMOTED"]
        assert (decode["hits"], decode["plain_runs"], decode["bytes"]) == (2, 2, DECODE_GRAPH)


def test_without_capture_segments_stay_warm_and_waiting_says_so() -> None:
    with serving(capture=False) as (session, device):
        first = answer(session)
        assert session.wait_captured() is False
        assert answer(session) == first
        assert entry(session)["state"] == "WARM"
        assert entry(session)["plain_runs"] == 6
        assert session.report()["worker"]["state"] == "off"
        assert not any(line.startswith("build") for line in device.log)


def test_waiting_for_captures_ends_with_its_timeout() -> None:
    with serving() as (session, device):
        device.build_may_finish.clear()
        answer(session)
        assert session.wait_captured(0) is False
        device.build_may_finish.set()
        captured(session)


def test_graphs_are_built_in_the_order_traffic_asked() -> None:
    with serving() as (session, device):
        device.build_may_finish.clear()
        for length in (8, 2, 16):
            answer(session, length, tokens=2)
        device.build_may_finish.set()
        captured(session)
        builds = [line for line in device.log if line.startswith("build")]
        assert builds == ["build prefill@8[14]", "build decode[14]", "build prefill@2[14]", "build prefill@16[14]"]


def test_a_slow_build_never_delays_a_request() -> None:
    with serving() as (session, device):
        device.build_may_finish.clear()
        first = answer(session)
        assert device.build_started.wait(PATIENCE)
        # The build is in progress, and stays so until these requests are done.
        assert answer(session) == first
        assert answer(session, 16)
        assert entry(session, "prefill", 4)["state"] == "QUEUED"
        assert session.report()["totals"]["hits"] == 0
        device.build_may_finish.set()
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"


def test_a_built_graph_serves_nobody_before_it_is_checked() -> None:
    with serving() as (session, device):
        built = when_built(session)
        with session.request() as request:
            first = request.prefill([1, 2, 3], {})
            assert built.wait(PATIENCE)
            assert entry(session, "prefill", 4)["state"] == "BUILT"
            assert request.prefill([1, 2, 3], {}) == first
            assert entry(session, "prefill", 4)["plain_runs"] == 2
            assert not any(line.startswith("replay") for line in device.log)
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"


def test_a_refused_segment_runs_plainly_for_good_and_says_why() -> None:
    with serving() as (session, device):
        device.refuse = lambda graph: "CUDA_ERROR_NOT_SUPPORTED" if graph.startswith("decode") else None
        first = answer(session)
        captured(session)
        assert answer(session) == first
        captured(session)
        refused = entry(session)
        assert (refused["state"], refused["why"]) == ("REFUSED", "CUDA_ERROR_NOT_SUPPORTED")
        assert refused["history"][-1] == "QUEUED -> REFUSED"
        assert (refused["hits"], refused["plain_runs"]) == (0, 6)
        assert device.log.count("build decode[14]") == 1
        assert session.report()["worker"]["build_failures"] == 1
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"


def test_any_error_in_a_build_refuses_that_runner_and_the_worker_goes_on() -> None:
    with serving() as (session, device):
        device.build_error = MemoryError("out of host memory")
        answer(session, 2, tokens=1)
        captured(session)
        device.build_error = None
        answer(session, 3, tokens=1)
        captured(session)
        assert entry(session, "prefill", 2)["why"] == "the build failed with MemoryError: out of host memory"
        assert entry(session, "prefill", 4)["state"] == "PROMOTED"
        assert session.report()["worker"]["state"] == "running"


@pytest.mark.parametrize("really", [False, True])
def test_a_graph_that_exceeds_the_whole_budget_is_refused_with_the_figures(really: bool) -> None:
    with serving(graph_bytes=PREFILL_GRAPH + 1 if really else PREFILL_GRAPH - 1) as (session, device):
        device.real_bytes = lambda graph: 5000
        answer(session, tokens=1)
        captured(session)
        refused = entry(session, "prefill", 4)
        figures = ("5000", "1401") if really else ("1400", "1399")
        assert refused["why"] == f"its graph needs {figures[0]} bytes, the whole budget for graphs is {figures[1]}"
        assert ("build prefill@4[14]" in device.log) == really
        assert device.living == []
        assert session.report()["budget"]["used"] == 0


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(RunError, match="found -1"):
        Session(small_plan(), FakeDevice(small_plan()), graph_bytes=-1)


def test_the_least_recently_used_graph_is_evicted_first_and_before_the_next_is_built() -> None:
    with serving(graph_bytes=2 * PREFILL_GRAPH) as (session, device):
        expected = {length: answer(session, length, tokens=1) for length in (2, 4)}
        captured(session)
        assert answer(session, 2, tokens=1) == expected[2]  # bucket 4 is now the one not used for longest
        device.log.clear()
        answer(session, 8, tokens=1)
        captured(session)
        assert device.log.index("release prefill@4[14]") < device.log.index("build prefill@8[14]")
        states = {bucket: entry(session, "prefill", bucket)["state"] for bucket in (2, 4, 8)}
        assert states == {2: "PROMOTED", 4: "EVICTED", 8: "PROMOTED"}
        budget = session.report()["budget"]
        assert (budget["used"], budget["peak"], budget["evictions"]) == (2 * PREFILL_GRAPH, 2 * PREFILL_GRAPH, 1)


def test_an_evicted_segment_runs_plainly_with_the_same_tokens_and_comes_back() -> None:
    with serving(graph_bytes=PREFILL_GRAPH) as (session, device):
        expected = answer(session, 4, tokens=1)
        captured(session)
        answer(session, 2, tokens=1)
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "EVICTED"
        device.log.clear()
        assert answer(session, 4, tokens=1) == expected
        assert device.log[:2] == ["embed", "rotary"]
        captured(session)
        assert answer(session, 4, tokens=1) == expected
        again = entry(session, "prefill", 4)
        cycle = ["PROMOTED -> EVICTED", "EVICTED -> QUEUED", "QUEUED -> BUILT", "BUILT -> PROMOTED"]
        assert again["history"][-4:] == cycle
        assert entry(session, "prefill", 2)["state"] == "EVICTED"


def test_a_graph_in_use_is_not_evicted_until_its_step_is_done() -> None:
    with serving(graph_bytes=PREFILL_GRAPH) as (session, device):
        answer(session, 4, tokens=1)
        captured(session)
        used = runner_of(session, "prefill", 4)
        graph = session._worker.take(used)
        assert isinstance(graph, FakeGraph)
        estimated, estimate = threading.Event(), device.graph_bytes

        def note(launches: int) -> int:
            estimated.set()
            return estimate(launches)

        device.graph_bytes = note  # type: ignore[method-assign]
        answer(session, 2, tokens=1)
        assert estimated.wait(PATIENCE)
        assert entry(session, "prefill", 2)["state"] == "QUEUED"
        assert not graph.released
        device.log.append("the step is done")
        session._worker.put_back([used])
        captured(session)
        assert device.log.index("the step is done") < device.log.index("release prefill@4[14]")
        assert entry(session, "prefill", 2)["state"] == "PROMOTED"


def test_a_graph_larger_than_estimated_makes_its_real_room_and_is_kept() -> None:
    with serving(graph_bytes=2 * PREFILL_GRAPH) as (session, device):
        answer(session, 4, tokens=1)
        captured(session)
        device.real_bytes = lambda graph: 2 * PREFILL_GRAPH
        answer(session, 2, tokens=1)
        captured(session)
        assert entry(session, "prefill", 4)["state"] == "EVICTED"
        assert entry(session, "prefill", 2)["bytes"] == 2 * PREFILL_GRAPH
        assert session.report()["budget"]["peak"] == 2 * PREFILL_GRAPH


def test_a_graph_whose_real_size_does_not_fit_yet_is_built_again_when_it_does() -> None:
    with serving(graph_bytes=2 * PREFILL_GRAPH) as (session, device):
        answer(session, 4, tokens=1)
        captured(session)
        used = runner_of(session, "prefill", 4)
        session._worker.take(used)
        device.real_bytes = lambda graph: 2 * PREFILL_GRAPH
        released, release = threading.Event(), device.release

        def note(graph: FakeGraph) -> None:
            release(graph)
            released.set()

        device.release = note  # type: ignore[method-assign]
        answer(session, 2, tokens=1)
        assert released.wait(PATIENCE)  # built, too large while the other is in use, given back
        assert entry(session, "prefill", 2)["state"] == "QUEUED"
        session._worker.put_back([used])
        captured(session)
        assert entry(session, "prefill", 2)["state"] == "PROMOTED"
        assert device.log.count("build prefill@2[14]") == 2


def test_a_worker_that_crashes_is_reported_and_requests_go_on_plainly() -> None:
    with serving() as (session, device):
        answer(session, 2, tokens=1)
        captured(session)
        device.crash_worker = RuntimeError("a bug of ours")
        expected = answer(session, 4)
        assert session.wait_captured() is False
        assert session.report()["worker"]["state"] == "crashed: RuntimeError: a bug of ours"
        crashed = entry(session, "prefill", 4)
        assert crashed["state"] == "WARM"
        assert crashed["history"][-1] == "QUEUED -> WARM"
        device.log.clear()
        assert answer(session, 4) == expected
        assert not any(line.startswith(("build", "replay")) for line in device.log)
        answer(session, 2, tokens=1)
        assert device.log[-1] == "replay prefill@2[14]"  # what serves goes on serving


def test_a_crash_wakes_those_who_wait_for_captures() -> None:
    with serving() as (session, device), others() as submit:
        device.build_may_finish.clear()
        answer(session, 2, tokens=1)
        assert device.build_started.wait(PATIENCE)
        answer(session, 4, tokens=1)
        waiting = submit(session.wait_captured)
        device.crash_worker = RuntimeError("a bug of ours")
        device.build_may_finish.set()
        assert result(waiting) is False


def test_closing_waits_for_the_build_in_progress_and_releases_everything() -> None:
    with others() as submit:
        device = FakeDevice(small_plan())
        session = Session(device.plan, device)
        answer(session, 2, tokens=1)
        captured(session)
        device.build_started.clear()
        device.build_may_finish.clear()
        answer(session, 4, tokens=1)
        assert device.build_started.wait(PATIENCE)
        waiting = submit(session.wait_captured)
        closing = submit(session.close)
        assert result(waiting) is False
        assert not device.closed
        device.build_may_finish.set()
        result(closing)
        assert device.closed
        assert len(device.graphs) == 2
        assert device.living == []
        assert session.report()["worker"]["state"] == "closed"
        assert session.report()["budget"]["used"] == 0
        session.close()


def test_closing_while_a_graph_is_checked_gives_the_check_up() -> None:
    with others() as submit:
        device = FakeDevice(small_plan())
        session = Session(device.plan, device)
        checking, go_on = threading.Event(), threading.Event()

        def hold(name: str) -> None:
            if threading.current_thread().name.startswith("hjgc-capture") and name == "embed":
                checking.set()
                assert go_on.wait(PATIENCE)

        device.before_launch = hold
        answer(session, tokens=1)
        assert checking.wait(PATIENCE)
        device.log.clear()
        waiting = submit(session.wait_captured)
        closing = submit(session.close)
        assert result(waiting) is False
        go_on.set()
        result(closing)
        assert device.log == ["release prefill@4[14]"]
        assert device.living == []


def test_the_interpreter_switches_threads_finely_while_any_session_captures() -> None:
    before = sys.getswitchinterval()
    first = Session(small_plan(), FakeDevice(small_plan()))
    second = Session(small_plan(), FakeDevice(small_plan()))
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    first.close()
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    second.close()
    assert sys.getswitchinterval() == pytest.approx(before)


def test_many_callers_get_the_same_answers_while_graphs_come_and_go() -> None:
    lengths = [2, 3, 4, 7, 8, 16, 20, 33]
    with serving(capture=False) as (session, _):
        expected = {length: answer(session, length, tokens=5) for length in lengths}
    with serving(graph_bytes=2 * DECODE_GRAPH) as (session, device), others() as submit:
        asked = [(length, submit(lambda length=length: answer(session, length, tokens=5))) for length in lengths * 6]
        for length, future in asked:
            assert result(future) == expected[length]
        captured(session)
        report = session.report()
        assert report["budget"]["peak"] <= 2 * DECODE_GRAPH
        assert report["requests"]["finished"] == len(asked)
        assert sum(graph.bytes for graph in device.living) == report["budget"]["used"]


def promoted(bucket: int, last_use: int, *, uses: int = 0) -> SegmentRunner:
    runner = SegmentRunner(Stretch("prefill", "default", 0, (0,)), bucket, bucket)
    runner.warm()
    runner.queue()
    runner.built(FakeGraph("prefill", (0,), bucket, 100))
    runner.promote()
    runner.last_use, runner.uses = last_use, uses
    return runner


@pytest.mark.parametrize(
    ("amount", "victims"),
    [(100, []), (101, [4]), (200, [4]), (201, [4, 1]), (300, [4, 1]), (301, None)],
)
def test_the_budget_names_as_few_victims_as_will_do(amount: int, victims: list[int] | None) -> None:
    budget = Budget(500)
    runners = [promoted(1, 30), promoted(2, 10, uses=1), promoted(4, 20)]
    queued = SegmentRunner(Stretch("prefill", "default", 0, (0,)), 8, 8)
    for runner in (*runners, queued):
        budget.hold(runner, 100)
    found = budget.victims(amount)
    assert (None if found is None else [runner.bucket for runner in found]) == victims
    assert budget.used == 400
    assert all(runner.state is State.PROMOTED for runner in runners)


def test_requests_do_not_wait_for_builds_that_wait_for_room() -> None:
    # Room comes only once the first graph is checked, which needs a gap; the request goes on without.
    with serving(graph_bytes=PREFILL_GRAPH) as (session, _), session.request() as request:
        request.prefill([1, 2], {})
        for _ in range(20):
            request.decode()
        assert entry(session)["state"] == "QUEUED"
        assert session.wait_captured(0) is False


def test_the_driver_refusing_a_plain_run_is_one_line_to_the_caller() -> None:
    with serving(capture=False) as (session, device):

        def refuse(name: str) -> None:
            raise BackendRefused("CUDA_ERROR_ILLEGAL_ADDRESS")

        device.before_launch = refuse
        with pytest.raises(RunError, match="the device refused to run the step: CUDA_ERROR_ILLEGAL_ADDRESS"):
            answer(session)
        device.before_launch = lambda name: None
        answer(session)


def test_a_waiting_caller_is_served_while_a_build_is_stuck() -> None:
    with serving() as (session, device), others() as submit:
        device.build_may_finish.clear()
        first = answer(session)
        assert device.build_started.wait(PATIENCE)
        arrivals = Arrivals(session)
        with session.request() as request:
            arrivals.wait()
            waiting = submit(lambda: answer(session))
            arrivals.wait()
            request.prefill([1], {})
        assert result(waiting) == first
        device.build_may_finish.set()


def when_pacing(session: Session) -> threading.Event:
    """Set once the worker rests until the next build's time."""
    resting, rest = threading.Event(), session._worker._rest

    def note(seen: int, pause: float) -> None:
        if session._worker._pacing:
            resting.set()
        rest(seen, pause)

    session._worker._rest = note  # type: ignore[method-assign]
    return resting


def test_builds_beside_a_request_are_spaced_and_go_on_as_soon_as_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BUILD_SPACING", 3600.0)
    with serving() as (session, _):
        built, pacing = when_built(session), when_pacing(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            assert built.wait(PATIENCE)  # the first of all waits for nothing
            request.decode(last=True)
            assert pacing.wait(PATIENCE)
            assert session.wait_captured(0) is False
            assert entry(session)["state"] == "QUEUED"
            assert session.report()["worker"]["builds"] == 1
        captured(session)  # long before an hour has passed
        numbers = session.report()["worker"]
        assert (numbers["builds"], numbers["builds_beside_requests"]) == (2, 1)
        assert 0 < numbers["longest_build"] <= numbers["build_seconds"]
        assert numbers["pacing_seconds"] > 0


def test_builds_go_on_beside_a_request_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BUILD_SPACING", 0.001)
    with serving() as (session, device), session.request() as request:
        both, build = threading.Event(), device.build

        def note(phase: str, launches: Sequence[int], bucket: int, pause: object = None) -> FakeGraph:
            graph = build(phase, launches, bucket)
            if len(device.graphs) == 2:
                both.set()
            return graph

        device.build = note  # type: ignore[method-assign]
        request.prefill([1, 2, 3], {})
        request.decode()
        assert both.wait(PATIENCE)


def test_a_closing_session_does_not_wait_for_the_next_builds_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BUILD_SPACING", 3600.0)
    with serving() as (session, _):
        pacing = when_pacing(session)
        with session.request() as request:
            request.prefill([1, 2, 3], {})
            request.decode()
            assert pacing.wait(PATIENCE)
            session.close()
    assert session.report()["worker"]["state"] == "closed"


def test_a_build_waits_until_the_step_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BUILD_SPACING", 3600.0)
    with serving() as (session, device):
        pacing = when_pacing(session)
        built = threading.Event()

        def before_launch(name: str) -> None:
            if name == "embed":
                assert pacing.wait(PATIENCE)
                assert not device.build_started.is_set()

        def before_read() -> None:
            # All is launched, and the token is waited for.
            assert device.build_started.wait(PATIENCE)
            built.set()

        with session.request() as request:
            session._worker.launching(True)  # as of a step that was begun before the graph was asked for
            session._worker.ran_plainly(runner_of(session, "prefill", 2), 0)
            device.before_launch, device.before_read = before_launch, before_read
            request.prefill([1, 2, 3], {})
        assert built.is_set()
        device.before_launch, device.before_read = lambda name: None, lambda: None
        captured(session)


def test_a_build_rests_while_a_step_is_launched_though_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (session, device):
        naps: list[float] = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                session._worker.launching(False)

        monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=nap, perf_counter=lambda: 10.0))
        session._worker.launching(True)
        session._worker._give_way(11.0)
        assert naps == [worker.NAP] * 3
        session._worker.launching(True)
        session._worker._give_way(10.0)
        assert len(naps) == 3
        session._worker.launching(False)
        monkeypatch.undo()
        pauses: list[object] = []
        build = device.build
        device.build = lambda *a: (pauses.append(a[3]), build(*a))[1]  # type: ignore[method-assign]
        answer(session, 3, tokens=1)
        captured(session)
        assert len(pauses) == 1 and callable(pauses[0])
