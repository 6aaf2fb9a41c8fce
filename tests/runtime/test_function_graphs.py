"""Are graphs of a function built behind its calls, each for some sizes, and do they serve with the same bits?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hjgc
from hjgc.plan_format import load
from hjgc.plan_format.errors import RunError
from hjgc.runtime import BackendRefused, route
from hjgc.runtime.errors import Cancelled, DeadlineExceeded, SessionClosed
from hjgc.runtime.function import PHASE, Function
from hjgc.runtime.samples import Samples
from tests.runtime.fake_device import BYTES_PER_LAUNCH, FakeDevice
from tests.runtime.functions import AROUND, Made, made, write_function
from tests.runtime.serving import PATIENCE, Arrivals, others, result, when_built

__all__ = ["made"]

Array = Any  # of numpy
Outputs = dict[str, Array]

PAIR = "pair (float[N,4] a, float[N,M] b) => (c, d) { c = Exp(a) d = Neg(b) }"
"""Two launches, one static segment."""
DRAWN = "drawn (float[N,4] a) => (y, r) { t = Exp(a) r = RandomNormalLike(t) y = Add(t, r) }"
"""A launch, an island, a launch."""
SEEDED = DRAWN.replace("Like", "Like <seed = 7.0> ")
GRAPH = 2 * BYTES_PER_LAUNCH
"""Bytes of a graph of PAIR."""


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def pair(n: int = 2, m: int = 3, seed: int = 0) -> dict[str, Array]:
    return {"a": floats(n, 4, seed=seed), "b": floats(n, m, seed=seed)}


def same(found: Outputs, expected: Outputs) -> bool:
    return found.keys() == expected.keys() and all(found[n].tobytes() == expected[n].tobytes() for n in found)


def captured(function: Function) -> None:
    assert function.wait_captured(PATIENCE)


def entry(function: Function, *key: int, segment: int = 0) -> dict[str, Any]:
    """What the report says of a static segment at these sizes."""
    segments = function.report()["segments"]
    (found,) = (e for e in segments if e["segment"] == segment and e.get("key") == list(key))
    return found


Calling = Callable[..., tuple[Function, FakeDevice]]


@pytest.fixture
def calling(tmp_path: Path) -> Generator[Calling]:
    """Makes functions on fake devices, and closes them."""
    functions: list[Function] = []

    def make(text: str = PAIR, **options: Any) -> tuple[Function, FakeDevice]:
        with load(write_function(tmp_path, text, {"N": (0, 8)})) as file:
            device = FakeDevice(file.plan)
        functions.append(Function(device.plan, device, **options))
        return functions[-1], device

    yield make
    for function in functions:
        function.close()


# Values, on the CPU.


def test_graphs_give_the_bits_of_plain_runs_for_whatever_they_are_given(made: Made, tmp_path: Path) -> None:
    function = made(PAIR, N=(0, 8))
    function(pair())
    captured(function)
    found = [function(pair(seed=seed)) for seed in range(3)]
    served = entry(function, 2, 3)
    assert (served["state"], served["hits"], served["plain_runs"]) == ("PROMOTED", 3, 1)
    assert served["history"] == ["COLD -> WARM", "WARM -> QUEUED", "QUEUED -> BUILT", "BUILT -> PROMOTED"]
    with hjgc.load(tmp_path / "plan0.hjg", capture=False) as plainly:
        assert all(same(outputs, plainly(pair(seed=seed))) for seed, outputs in enumerate(found))
    np.testing.assert_allclose(found[0]["c"], np.exp(pair()["a"]), rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_every_tuple_of_sizes_has_a_graph_of_its_own(made: Made, rows: int) -> None:
    function = made(PAIR, N=(0, 8), M=(0, 4))
    sizes = [(2, 3), (rows, 4), (rows, 0)]
    plain = [function(pair(*size)) for size in sizes]
    captured(function)
    for size, expected in zip(sizes, plain, strict=True):
        assert same(function(pair(*size)), expected)
        assert (entry(function, *size)["state"], entry(function, *size)["hits"]) == ("PROMOTED", 1)


def test_a_function_without_sizes_has_one_graph(made: Made) -> None:
    function = made("fixed (float[3] x) => (y) { y = Exp(x) }")
    plain = function({"x": floats(3)})
    captured(function)
    assert same(function({"x": floats(3)}), plain)
    assert entry(function)["state"] == "PROMOTED"
    assert function.metrics()["segment.call.default.0.fixed.hits"] == 1


def test_a_graph_of_scalars_and_of_truths_is_checked_like_any_other(made: Made) -> None:
    function = made("less (float a, float[N] b) => (c, d) { e = Exp(a) c = Less(b, e) d = Neg(e) }")
    for _ in range(2):
        found = function({"a": 0.5, "b": [1.0, 2.0]})
        assert (found["c"].tolist(), found["d"].shape) == ([True, False], ())
        captured(function)
    assert entry(function, 2)["hits"] == 1


def test_islands_run_between_graphs(made: Made) -> None:
    function = made(AROUND, N=(1, 8))
    function({"a": floats(3, 4), "go": True})
    captured(function)
    assert [entry(function, 3, segment=number)["state"] for number in (0, 2)] == ["PROMOTED", "PROMOTED"]
    for seed, go in enumerate((True, False)):
        a = floats(3, 4, seed=seed)
        t = np.exp(a)
        expected = -(np.sin(t) if go else np.cos(t))
        np.testing.assert_allclose(function({"a": a, "go": go})["y"], expected, rtol=1e-5)
    assert entry(function, 3, segment=2)["hits"] == 2


def test_random_numbers_are_drawn_for_calls_alone(made: Made, tmp_path: Path) -> None:
    function, inputs, found = made(SEEDED, N=(1, 8)), {"a": floats(2, 4)}, list[Outputs]()
    for _ in range(3):
        found.append(function(inputs))
        captured(function)
    with hjgc.load(tmp_path / "plan0.hjg", capture=False) as plainly:
        assert all(same(plainly(inputs), outputs) for outputs in found)
    assert (entry(function, 2)["state"], entry(function, 2)["hits"]) == ("PROMOTED", 2)
    behind = entry(function, 2, segment=2)
    assert (behind["state"], behind["plain_runs"], function.report()["totals"]["refused"]) == ("REFUSED", 3, 1)
    assert behind["why"].startswith("a check would draw the random numbers of ")
    assert "ai.onnx.RandomNormalLike draws random numbers" in behind["why"]
    assert function._samples.used == 0


def test_what_islands_did_for_checks_is_not_counted(made: Made) -> None:
    function = made(AROUND, N=(1, 8))
    for n in (3, 4, 3):
        function({"a": floats(n, 4), "go": True})
        captured(function)
    assert function.report()["worker"]["builds"] == 4
    assert function.report()["islands"]["runs"] == 3


def test_a_launch_that_fails_in_a_graph_names_its_node(made: Made) -> None:
    function = made("pick (float[5] x, int64[N] places) => (y) { y = Gather(x, places) }")
    function({"x": floats(5), "places": [0, 1]})
    captured(function)
    with pytest.raises(RunError, match=r"launch 'node' \(gather\) failed: expected numbers of -5 to 4, found 1 to 7"):
        function({"x": floats(5), "places": [1, 7]})
    np.testing.assert_array_equal(function({"x": floats(5), "places": [1, -1]})["y"], floats(5)[[1, -1]])
    assert entry(function, 2)["hits"] == 2


def test_what_only_the_host_holds_goes_past_graphs(made: Made) -> None:
    function = made("text (string[N] x, float[N] a) => (string[N] y, b) { y = Identity(x) b = Exp(a) }")
    for words in (["one", "two"], ["three", "four"]):
        found = function({"x": words, "a": floats(2)})
        captured(function)
        assert found["y"].tolist() == words
    assert entry(function, 2)["hits"] == 1


# States, on the fake device.


def test_the_first_call_runs_launch_by_launch_and_the_next_by_its_graph(calling: Calling) -> None:
    function, device = calling()
    first = function(pair())
    captured(function)
    device.log.clear()
    assert same(function(pair()), first)
    assert device.log == ["arguments", "replay call@2x3[2]"]


def test_without_capture_nothing_is_built_and_no_arguments_are_kept(calling: Calling) -> None:
    function, device = calling(capture=False)
    first = function(pair())
    assert function.wait_captured() is False
    assert same(function(pair()), first)
    assert (entry(function, 2, 3)["state"], function._samples.used, device.graphs) == ("WARM", 0, [])


@pytest.mark.parametrize("launch", [0, 1])
def test_a_graph_with_a_wrong_launch_is_quarantined_and_the_launch_named(calling: Calling, launch: int) -> None:
    function, device = calling()
    name = device.plan.phase(PHASE).launches[launch].name
    device.corrupt = {name}
    first = function(pair())
    captured(function)
    found = entry(function, 2, 3)
    assert (found["state"], found["quarantine"]["name"]) == ("QUARANTINED", name)
    assert found["quarantine"]["tokens"] == [2, 3]
    assert device.living == []
    assert same(function(pair()), first)
    assert entry(function, 2, 3)["hits"] == 0


@pytest.mark.parametrize("launch", [0, 1])
def test_a_graph_that_writes_nothing_is_found_out(calling: Calling, launch: int) -> None:
    function, device = calling()
    device.hollow = {device.plan.phase(PHASE).launches[launch].name}
    function(pair())
    captured(function)
    assert entry(function, 2, 3)["state"] == "QUARANTINED"


def test_graphs_of_some_sizes_may_lie_and_those_of_others_serve(calling: Calling) -> None:
    function, device = calling()
    device.corrupt = {device.plan.phase(PHASE).launches[0].name}
    device.corrupt_when = lambda graph, rows: rows == (1, 3)
    for n in (1, 2):
        function(pair(n))
    captured(function)
    assert [entry(function, n, 3)["state"] for n in (1, 2)] == ["QUARANTINED", "PROMOTED"]


def test_a_segment_behind_an_island_is_checked_on_what_the_call_made_of_it(calling: Calling) -> None:
    function, device = calling(AROUND)
    device.corrupt = {device.plan.phase(PHASE).launches[2].name}
    function({"a": floats(2, 4), "go": True})
    captured(function)
    assert [entry(function, 2, segment=number)["state"] for number in (0, 2)] == ["PROMOTED", "QUARANTINED"]


def test_a_refused_graph_says_why_and_its_sizes_run_plainly(calling: Calling) -> None:
    function, device = calling()
    device.refuse = lambda graph: "CUDA_ERROR_NOT_SUPPORTED"
    first = function(pair())
    captured(function)
    assert same(function(pair()), first)
    refused = entry(function, 2, 3)
    assert (refused["state"], refused["why"], refused["plain_runs"]) == ("REFUSED", "CUDA_ERROR_NOT_SUPPORTED", 2)


def test_the_graph_used_longest_ago_gives_way_to_another_within_the_budget(calling: Calling) -> None:
    function, device = calling(graph_bytes=2 * GRAPH)
    expected: dict[int, Outputs] = {}
    for n in (1, 2, 3):
        expected[n] = function(pair(n))
        captured(function)
    assert [entry(function, n, 3)["state"] for n in (1, 2, 3)] == ["EVICTED", "PROMOTED", "PROMOTED"]
    assert function.report()["budget"]["evictions"] == 1
    assert same(function(pair(1)), expected[1])
    captured(function)
    assert [entry(function, n, 3)["state"] for n in (1, 2, 3)] == ["PROMOTED", "EVICTED", "PROMOTED"]
    assert len(device.living) == 2
    assert all(same(function(pair(n)), found) for n, found in expected.items())


def test_sizes_that_nobody_calls_any_more_give_way_to_others(calling: Calling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "MOST_SIZES", 2)
    function, device = calling()
    for n in (1, 2, 1, 3):
        function(pair(n))
        captured(function)
    assert [e["key"] for e in function.report()["segments"]] == [[1, 3], [3, 3]]
    assert function.report()["worker"]["retired"] == 1
    assert [graph.bucket for graph in device.living] == [(1, 3), (3, 3)]
    assert function.report()["budget"]["used"] == 2 * GRAPH


def test_what_sizes_counted_stays_when_they_give_way(calling: Calling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "MOST_SIZES", 1)
    function, _ = calling()
    for n in (1, 1, 2, 2, 2, 3):
        function(pair(n))
        captured(function)
    totals = function.report()["totals"]
    assert (totals["hits"], totals["plain_runs"], totals["promoted"]) == (3, 3, 1)


def test_sizes_whose_graphs_are_still_to_come_give_way_to_nobody(
    calling: Calling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "MOST_SIZES", 1)
    function, device = calling()
    device.build_may_finish.clear()
    function(pair(1))
    function(pair(2))
    assert function.report()["totals"]["outside_buckets"] == 1
    device.build_may_finish.set()
    captured(function)
    assert [e["key"] for e in function.report()["segments"]] == [[1, 3]]


def test_arguments_are_kept_until_the_graph_is_checked(calling: Calling) -> None:
    function, device = calling()
    device.build_may_finish.clear()
    given = pair()
    function(given)
    assert function._samples.used == sum(array.nbytes for array in given.values())
    given["a"][:] = 7  # the caller's to change
    device.build_may_finish.set()
    captured(function)
    assert (entry(function, 2, 3)["state"], function._samples.used) == ("PROMOTED", 0)


def test_closing_lets_go_of_arguments_whose_graphs_are_still_to_come(
    calling: Calling, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, device = calling()
    device.build_may_finish.clear()
    for n in (1, 2):
        function(pair(n))
    thread = function._worker._thread
    assert thread is not None
    join = thread.join
    monkeypatch.setattr(thread, "join", lambda: device.build_may_finish.set() or join())
    function.close()
    assert [runner.sample for runner in function._router.runners] == [None, None]


def test_a_worker_that_crashed_lets_go_of_arguments(calling: Calling) -> None:
    function, device = calling()

    def crash(name: str) -> None:
        if threading.current_thread().name.startswith("hjgc-capture"):
            raise SystemExit("a bug of ours")

    device.before_launch = crash
    function(pair())
    assert not function.wait_captured(PATIENCE)
    assert function.report()["worker"]["state"] == "crashed: SystemExit: a bug of ours"
    assert (entry(function, 2, 3)["state"], [r.sample for r in function._router.runners]) == ("BUILT", [None])


def test_where_arguments_find_no_room_a_later_call_asks_for_the_graph(calling: Calling) -> None:
    function, device = calling()
    function._samples = Samples(limit=1)
    device.build_may_finish.clear()
    function(pair(1))
    function(pair(2))
    assert [entry(function, n, 3)["state"] for n in (1, 2)] == ["QUEUED", "WARM"]
    device.build_may_finish.set()
    captured(function)
    function(pair(2))
    captured(function)
    assert entry(function, 2, 3)["state"] == "PROMOTED"


def test_a_call_that_comes_during_a_check_is_served_and_the_check_tried_again(calling: Calling) -> None:
    function, device = calling()
    with others() as submit:
        expected = function(pair(seed=1))
        captured(function)
        device.build_may_finish.clear()
        function(pair(1))
        arrivals, answers = Arrivals(function), list[Any]()

        def come(name: str) -> None:
            if threading.current_thread().name.startswith("hjgc-capture") and not answers:
                answers.append(submit(lambda: function(pair(seed=1))))
                arrivals.wait()

        device.before_launch = come
        device.build_may_finish.set()
        captured(function)
        assert same(result(answers[0]), expected)
    assert (entry(function, 1, 3)["state"], entry(function, 1, 3)["aborted_checks"]) == ("PROMOTED", 1)


def test_calls_are_served_first_come_first_served(calling: Calling) -> None:
    function, device = calling(capture=False)
    arrivals, order = Arrivals(function), list[int]()
    entered, may_go = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        entered.set()
        assert may_go.wait(PATIENCE)

    def call(number: int) -> None:
        function(pair(number))
        order.append(number)

    device.before_launch = hold
    with others() as submit:
        calls = []
        for number in range(1, 5):
            calls.append(submit(lambda number=number: call(number)))
            arrivals.wait()
            assert entered.wait(PATIENCE)
        may_go.set()
        for future in calls:
            result(future)
    assert order == [1, 2, 3, 4]


@contextmanager
def held(function: Function, device: FakeDevice) -> Generator[None]:
    """Somebody's call has the device."""
    entered, may_go = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        entered.set()
        assert may_go.wait(PATIENCE)

    device.before_launch = hold
    with others() as submit:
        call = submit(lambda: function(pair()))
        assert entered.wait(PATIENCE)
        try:
            yield
        finally:
            device.before_launch = lambda name: None
            may_go.set()
        result(call)


def test_a_deadline_covers_waiting_for_the_device(calling: Calling) -> None:
    function, device = calling(capture=False)
    with held(function, device), pytest.raises(DeadlineExceeded, match=r"to end within 0\.001 s"):
        function(pair(), deadline=0.001)
    assert function(pair(), deadline=PATIENCE)
    assert function.report()["requests"]["expired"] == 1
    assert function.calls == 2


def test_a_call_is_cancelled_between_two_launches_and_the_next_is_served(calling: Calling) -> None:
    function, device = calling(capture=False)
    expected = function(pair())
    device.before_launch = lambda name: function.cancel()
    with pytest.raises(Cancelled, match="the call was cancelled in a static segment"):
        function(pair())
    device.before_launch = lambda name: None
    assert same(function(pair()), expected)
    assert function.report()["requests"]["cancelled"] == 1


def test_a_cancellation_that_comes_too_late_leaves_a_finished_call(calling: Calling) -> None:
    function, device = calling(capture=False)
    expected = function(pair())
    device.before_read = function.cancel
    assert same(function(pair()), expected)
    requests = function.report()["requests"]
    assert (requests["finished"], requests["cancelled"]) == (2, 0)


def test_a_call_is_cancelled_between_a_graph_and_the_island_behind_it(calling: Calling) -> None:
    function, device = calling(DRAWN)
    expected = function({"a": floats(2, 4)})
    captured(function)
    device.before_replay = lambda graph: function.cancel()
    with pytest.raises(Cancelled, match=r"the call was cancelled in a dynamic segment \(island\.0"):
        function({"a": floats(2, 4)})
    device.before_replay = lambda graph: None
    assert same(function({"a": floats(2, 4)}), expected)
    assert entry(function, 2)["in_use"] == 0


def test_closing_sends_those_away_who_wait(calling: Calling) -> None:
    function, device = calling(capture=False)
    with others() as submit:
        arrivals = Arrivals(function)
        with held(function, device):
            arrivals.wait()
            waiting = submit(lambda: function(pair()))
            arrivals.wait()
            closing = submit(function.close)
            with pytest.raises(SessionClosed):
                result(waiting)
        result(closing)
    assert device.closed


def test_what_the_device_refuses_is_an_error_of_the_call_and_counted(calling: Calling) -> None:
    function, device = calling()
    expected = function(pair())
    captured(function)
    device.replay_error = BackendRefused("CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(RunError, match="the device refused to run the step: CUDA_ERROR_ILLEGAL_ADDRESS"):
        function(pair())
    device.replay_error = None
    assert same(function(pair()), expected)
    assert function.report()["requests"]["device_errors"] == 1
    assert entry(function, 2, 3)["in_use"] == 0


def test_a_built_graph_serves_nobody_before_it_is_checked(calling: Calling) -> None:
    function, device = calling()
    device.build_may_finish.clear()
    function(pair())
    built = when_built(function)
    with function._turns.between():
        device.build_may_finish.set()
        assert built.wait(PATIENCE)
        assert entry(function, 2, 3)["state"] == "BUILT"
    captured(function)
    assert entry(function, 2, 3)["state"] == "PROMOTED"


def test_a_report_has_the_form_of_a_sessions_and_metrics_are_its_numbers(calling: Calling) -> None:
    function, _ = calling()
    function(pair())
    captured(function)
    function(pair())
    report, numbers = function.report(), function.metrics()
    assert set(report) == {
        "model", "target", "segments", "worker", "budget", "requests", "launch_ahead", "memory", "totals", "islands",
        "code", "calls",
    }  # fmt: skip
    assert (report["calls"], report["totals"]["hits"], report["totals"]["promoted"]) == (2, 1, 1)
    assert (numbers["calls"], numbers["segment.call.default.0.2x3.hits"]) == (2, 1)


def test_a_budget_under_nothing_is_refused(calling: Calling) -> None:
    with pytest.raises(RunError, match="a budget of 0 bytes or more for graphs, found -1"):
        calling(graph_bytes=-1)


def test_a_deadline_that_is_no_number_is_refused(calling: Calling) -> None:
    function, _ = calling()
    with pytest.raises(RunError, match="a deadline in seconds from now, found nan"):
        function(pair(), deadline=float("nan"))
