"""Where ONNX Runtime has its CUDA provider, do islands run on the plan's own memory, and do graphs hold them?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import RunError
from hjgc.runtime import route
from hjgc.runtime.backend import BackendRefused, FunctionBackend
from hjgc.runtime.backends import cuda_islands, cuda_provider
from hjgc.runtime.backends.cuda_driver import DriverError
from hjgc.runtime.backends.cuda_islands import DeviceIslands
from hjgc.runtime.backends.cuda_provider import CudaProvider
from hjgc.runtime.function import PHASE, SCHEDULE, Function
from hjgc.runtime.gate import AHEAD
from hjgc.runtime.island_sessions import Opened, session_options
from hjgc.runtime.opening_cuda import GPU, CodeRules, open_cuda
from tests.runtime.fake_provider import FakeOrt, ProviderDriver, Stream
from tests.runtime.functions import AROUND, HEADER
from tests.runtime.gpu_function import write_gpu_function
from tests.runtime.gpu_plan import FakeChild
from tests.runtime.serving import PATIENCE

Array = Any  # of numpy
Opening = Callable[..., Function]

GATED = """gated (float[N,4] a) => (y) <float[N,4] t, float[N,4] r, float[N,4] u, float[N,4] v> {
    t = Exp(a) r = com.microsoft.QuickGelu(t) u = Neg(r) v = com.microsoft.QuickGelu(u) y = Abs(v)
}"""
"""Two islands that compute the same, before, between and behind launches."""
SIZES = {"N": (1, 8)}
DRAWN = """drawn (float[N,4] a) => (y, z) <float[N,4] r, float[N,4] s> {
    t = Exp(a) r = RandomNormalLike(t) u = Exp(r) s = RandomNormalLike(u) y = Neg(r) z = Neg(s)
}"""


@pytest.fixture
def driver() -> ProviderDriver:
    return ProviderDriver()


@pytest.fixture
def ort(driver: ProviderDriver, monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    fake = FakeOrt(driver)
    monkeypatch.setattr(cuda_islands, "onnxruntime_for", lambda file: fake)
    monkeypatch.setattr("hjgc.runtime.islands.onnxruntime_for", lambda file: fake)
    return fake


@pytest.fixture
def opening(tmp_path: Path, driver: ProviderDriver, ort: FakeOrt) -> Generator[Opening]:
    functions: list[Function] = []

    def open_function(text: str = GATED, sizes: Any = SIZES, **options: Any) -> Function:
        with PlanFile(write_gpu_function(tmp_path, text, sizes)) as file:
            source = open_cuda(file, tmp_path, GPU, CodeRules(), driver=driver, start=FakeChild().start)
        functions.append(Function(source.choice.plan, cast(FunctionBackend, source.backend), source=source, **options))
        driver.log.clear()
        return functions[-1]

    yield open_function
    for function in functions:
        function.close()


def floats(n: int) -> Array:
    return np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)


def gelu(x: Array) -> Array:
    return x / (1 + np.exp(-1.702 * x))


def check(function: Function, n: int) -> None:
    a = floats(n)
    np.testing.assert_allclose(function({"a": a})["y"], gelu(gelu(a + 1) + 1) + 1, rtol=1e-5)


def test_an_island_runs_where_its_rows_lie_and_nothing_is_copied(opening: Opening, driver: ProviderDriver) -> None:
    function = opening(capture=False)
    for n in (2, 8, 2):
        check(function, n)
    assert (driver.log.count("send"), driver.log.count("fetch")) == (3, 3), "arguments and results alone"
    assert sum(line.startswith("wait") for line in driver.log) == 3
    islands = function.report()["islands"]
    assert (islands["providers"], islands["on_host"]) == ({"CUDAExecutionProvider": 2}, {})
    assert (islands["runs"], islands["bytes_to_host"], islands["bytes_to_device"]) == (6, 0, 0)


def test_each_kind_of_island_has_run_once_before_the_first_call(opening: Opening, ort: FakeOrt) -> None:
    function = opening(capture=False)
    (session,) = ort.sessions
    assert (session.runs, function.report()["islands"]["runs"]) == (1, 0)
    check(function, 2)
    assert (session.runs, function.report()["islands"]["runs"]) == (3, 2)


def test_what_draws_does_not_run_before(opening: Opening, ort: FakeOrt) -> None:
    opening(DRAWN, capture=False)
    assert [session.runs for session in ort.sessions] == [0, 0]


def test_what_fails_before_the_first_call_is_not_said(opening: Opening, ort: FakeOrt) -> None:
    ort.fails = "not yet"
    function = opening(capture=False)
    ort.fails = ""
    check(function, 2)


def test_islands_that_compute_the_same_share_a_session_and_recording_has_its_own(
    opening: Opening, ort: FakeOrt
) -> None:
    function = opening()
    assert len(ort.sessions) == 1
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    assert len(ort.sessions) == 2 and ort.sessions[0].stream != ort.sessions[1].stream


def test_islands_that_draw_random_numbers_have_a_session_each_and_no_graph(opening: Opening, ort: FakeOrt) -> None:
    function = opening(DRAWN)
    found = [function({"a": floats(2)}) for _ in range(3) if function.wait_captured(PATIENCE)]
    assert len({array.tobytes() for call in found for array in call.values()}) == 6
    assert len(ort.sessions) == 2
    segments = function.report()["segments"]
    assert [e["runs"] for e in segments if e["kind"] == "dynamic"] == [3, 3]


def test_one_graph_holds_launches_and_islands(opening: Opening, driver: ProviderDriver) -> None:
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    assert [line for line in driver.log if line.startswith("add_")] == [
        "add_kernel", "add_child after 0", "add_kernel", "add_child after 2", "add_kernel"
    ]  # fmt: skip
    runs = function.report()["islands"]["runs"]
    driver.log.clear()
    check(function, 2)
    assert [line for line in driver.log if line.startswith(("launch", "replay"))] == ["replay 2 child 2 child 2"]
    report = function.report()
    assert report["islands"]["runs"] == runs
    (entry,) = report["segments"]
    assert (entry["segment"], entry["last_segment"], entry["state"], entry["launches"]) == (0, 4, "PROMOTED", 5)
    assert function.metrics()[f"segment.{PHASE}.{SCHEDULE}.0-4.2.hits"] == 1


def test_each_tuple_of_sizes_has_its_own_graph(opening: Opening) -> None:
    function = opening()
    for _ in range(2):
        for n in (1, 8, 3):
            check(function, n)
        assert function.wait_captured(PATIENCE)
    assert [(e["key"], e["hits"]) for e in function.report()["segments"]] == [([1], 1), ([8], 1), ([3], 1)]


@pytest.mark.parametrize("spoil", ["a copy from the host", "a run that cannot be recorded", "a capture that is void"])
def test_where_no_graph_holds_the_island_the_rest_has_graphs(
    opening: Opening, ort: FakeOrt, driver: ProviderDriver, spoil: str
) -> None:
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    if spoil == "a copy from the host":
        driver.kinds = ["memcpy"]
    elif spoil == "a capture that is void":
        driver.refuses.add("end_capture")
    else:
        record = ort.sessions[1]
        record.run_with_iobinding = lambda *given: (_ for _ in ()).throw(RuntimeError("it waits for the device"))  # type: ignore[method-assign] (raises)
    for _ in range(3):
        check(function, 8)
        assert function.wait_captured(PATIENCE)
    whole, *parts = [e for e in function.report()["segments"] if e.get("key") in ([8], None)]
    assert (whole["state"], whole["hits"]) == ("REFUSED", 0)
    words = {"a copy": "memcpy", "a run ": "it waits for the device", "a capt": "the capture is void"}[spoil[:6]]
    assert words in whole["why"]
    static = [e for e in parts if e["kind"] == "static"]
    assert [(e["segment"], e["state"], e["hits"]) for e in static] == [(n, "PROMOTED", 1) for n in (0, 2, 4)]
    assert [e["runs"] for e in parts if e["kind"] == "dynamic"] == [2, 2]


def test_a_graph_that_computes_something_else_gives_way_to_graphs_of_the_parts(
    opening: Opening, driver: ProviderDriver
) -> None:
    function = opening()
    record = driver.end_capture
    driver.end_capture = lambda stream: record(stream)[:0]  # type: ignore[method-assign] (the island is left out)
    for _ in range(3):
        check(function, 2)
        assert function.wait_captured(PATIENCE)
    whole, *parts = function.report()["segments"]
    assert (whole["state"], whole["quarantine"]["op"]) == ("QUARANTINED", "island")
    assert {e["state"] for e in parts if e["kind"] == "static"} == {"PROMOTED"}


def test_sessions_that_could_not_be_recorded_stay_and_others_go(
    opening: Opening, ort: FakeOrt, driver: ProviderDriver
) -> None:
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    recording = ort.sessions[1]
    references = sys.getrefcount(recording)
    driver.kinds = ["memcpy"]
    for n in (3, 4):
        check(function, n)
        assert function.wait_captured(PATIENCE)
    assert any(recording is kept for kept in cuda_provider._kept)
    assert sys.getrefcount(recording) == references + 2, "once by the list, once for good"
    assert all(ort.sessions[0] is not kept for kept in cuda_provider._kept)


def test_what_is_left_to_the_cpu_is_counted_with_its_reason(opening: Opening, ort: FakeOrt) -> None:
    ort.elsewhere = {"QuickGelu"}
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    check(function, 2)
    report = function.report()
    islands = report["islands"]
    assert islands["providers"] == {"CPUExecutionProvider": 2}
    assert islands["on_host"] == {"ONNX Runtime has no CUDA kernel, or prefers the CPU, for QuickGelu": 2}
    assert islands["bytes_to_host"] == islands["bytes_to_device"] == 2 * 2 * 2 * 4 * 4
    assert [e["kind"] for e in report["segments"]] == ["static", "dynamic"] * 2 + ["static"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"refuses": "no such\nkernel"}, "its CUDA provider does not take it: no such kernel"),
        ({"falls_back": True}, "its CUDA provider did not load: loading what is there"),
    ],
)
def test_a_provider_that_does_not_load_says_why(
    opening: Opening, ort: FakeOrt, spoil: dict[str, Any], why: str
) -> None:
    for name, value in spoil.items():
        setattr(ort, name, value)
    function = opening(capture=False)
    check(function, 2)
    assert function.report()["islands"]["on_host"] == {why: 2}


def test_without_the_provider_the_report_says_what_to_install(opening: Opening, ort: FakeOrt) -> None:
    ort.get_available_providers = lambda: ["CPUExecutionProvider"]  # type: ignore[method-assign] (as without it)
    function = opening(capture=False)
    check(function, 2)
    (why,) = function.report()["islands"]["on_host"]
    assert "onnxruntime-gpu" in why


def test_what_the_provider_wants_from_the_host_alone_comes_down(opening: Opening, ort: FakeOrt) -> None:
    ort.wanted_by_host = {0}
    function = opening(AROUND)
    a = floats(2)
    for _ in range(2):
        for go in (True, False):
            found = function({"a": a, "go": go})["y"]
            np.testing.assert_allclose(found, (np.sin(a + 1) if go else np.cos(a + 1)) + 1, rtol=1e-5)
        assert function.wait_captured(PATIENCE)
    report = function.report()
    assert report["islands"]["providers"] == {"CUDAExecutionProvider": 1}
    inputs = sorted([1, a.nbytes])
    assert report["islands"]["bytes_to_host"] / report["islands"]["runs"] in inputs
    assert report["islands"]["bytes_to_device"] == 0
    assert [e["kind"] for e in report["segments"]] == ["static", "dynamic", "static"], "a branch waits for the device"


def test_an_island_that_fails_on_the_device_names_its_nodes(opening: Opening, ort: FakeOrt) -> None:
    function = opening(capture=False)
    ort.fails = "out of memory"
    with pytest.raises(RunError, match=r"island\.0 \(ONNX nodes .*\) failed in ONNX Runtime: out of memory"):
        check(function, 2)
    ort.fails = ""
    check(function, 2)


def test_a_plain_run_that_may_be_stopped_is_never_more_than_an_island_ahead(
    opening: Opening, driver: ProviderDriver
) -> None:
    function = opening(capture=False)
    check(function, 2)
    driver.log.clear()
    function.backend.run(PHASE, range(5), (2,), lambda: False, AHEAD)
    assert [line.split()[0] for line in driver.log] == ["launch", "wait"] * 2 + ["launch"]


def test_what_does_not_cross_takes_no_page_locked_memory(
    opening: Opening, ort: FakeOrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_islands, "FUNCTION_STAGING", 256)
    held: list[int] = []
    for elsewhere in (set[str](), {"QuickGelu"}):
        ort.elsewhere = elsewhere
        function = opening(sizes={"N": (1, 1024)}, capture=False)
        before = function.report()["memory"]["staging"]
        check(function, 1024)
        held.append(function.report()["memory"]["staging"] - before)
    assert held == [0, 2 * 1024 * 4 * 4 - 256]


def test_what_was_counted_stays_in_the_report_when_the_sizes_give_way(
    opening: Opening, driver: ProviderDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "MOST_SIZES", 1)
    function = opening()
    driver.kinds = ["memcpy"]
    for _ in range(3):
        check(function, 2)
        assert function.wait_captured(PATIENCE)
    before = function.report()["totals"]
    driver.kinds = []
    check(function, 3)
    assert function.wait_captured(PATIENCE)
    after = function.report()
    assert (
        (before["hits"], before["dynamic_runs"]) == (after["totals"]["hits"], after["totals"]["dynamic_runs"]) == (3, 4)
    )
    assert after["totals"]["bytes"] == after["budget"]["used"]


def test_an_opening_that_fails_at_the_weights_gives_all_memory_back(
    opening: Opening, driver: ProviderDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(islands: DeviceIslands) -> None:
        raise BackendRefused("out of memory")

    monkeypatch.setattr(DeviceIslands, "_send_weights", send)
    with pytest.raises(BackendRefused):
        opening()
    assert not driver._locked and not driver._memory


def test_weights_of_islands_that_do_not_fit_are_said_with_what_to_do(opening: Opening, driver: ProviderDriver) -> None:
    islands = opening().backend._islands  # type: ignore[attr-defined] (of a CudaBackend)
    driver.refuses.add("allocate")
    with pytest.raises(RunError, match=r"expected 3 MiB .*out of memory.*; with onnxruntime in place of"):
        islands._allocated(3 << 20)


def test_a_stream_that_failed_keeps_nothing_from_being_given_back(
    opening: Opening, driver: ProviderDriver, ort: FakeOrt
) -> None:
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    recording = f"stream{ort.sessions[1].stream}"
    driver.refuses.add(f"wait {recording}")
    with pytest.raises(BackendRefused):
        function.close()
    assert f"drop {recording}" in driver.log
    assert not driver._locked and not driver._memory


def test_a_recorded_graph_that_the_driver_says_nothing_of_is_dropped(opening: Opening, driver: ProviderDriver) -> None:
    recorded: list[Any] = []
    dropped: list[Any] = []
    end, drop = driver.end_capture, driver.drop_graph

    def ask(graph: Any) -> list[str]:
        recorded.append(graph)
        raise DriverError("cuGraphGetNodes", "CUDA_ERROR_INVALID_VALUE", "invalid argument")

    driver.host_nodes, driver.end_capture = ask, lambda stream: [*end(stream)]  # type: ignore[method-assign] (watched)
    driver.drop_graph = lambda graph: (dropped.append(graph), drop(graph))[1]  # type: ignore[method-assign] (watched)
    function = opening()
    check(function, 2)
    assert function.wait_captured(PATIENCE)
    assert recorded and all(any(graph is other for other in dropped) for graph in recorded)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("f (float[N,4] a) => (float[N,4] y) { y = Exp(a) }", ""),
        ("f (float[N,4] a) => (float[N,4] y) { h = Cast <to = 10> (a) y = Cast <to = 1> (h) }", ""),
        ("f (int64[N] a) => (int64[N] y) { y = Neg(a) }", "it reads tensor(int64)"),
        ("f (float[N,4] a) => (y, k) { n = Constant <value_ints = [2]> () y, k = TopK(a, n) }", "TopK may choose"),
        ("f (float[N] a) => (int64[N] y) { y = Cast <to = 7> (a) }", "it makes whole numbers"),
        (
            "f (float[N] a) => (int64[N] y) { one = Constant <value = int64 {1}> () y = CastLike(a, one) }",
            "it makes whole numbers",
        ),
    ],
)
def test_rows_that_do_not_count_are_no_places_to_read_from(ort: FakeOrt, text: str, why: str) -> None:
    data = onnx.parser.parse_model(HEADER + text).SerializeToString()
    opened = CudaProvider(ort, Stream("stream1")).open(data, session_options(ort))
    assert isinstance(opened, Opened) and opened.padless.startswith(why) and bool(opened.padless) == bool(why)
