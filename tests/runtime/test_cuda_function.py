"""Does a function on the CUDA backend give the driver what the plan says, at whatever sizes its calls have?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from hjgc.plan_format import load
from hjgc.plan_format.building import BuildAnswer, BuiltVariant
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import RunError
from hjgc.runtime.backend import FunctionBackend, MemoryRef
from hjgc.runtime.backends import cuda_islands
from hjgc.runtime.backends.cuda import CudaBackend
from hjgc.runtime.backends.cuda_driver import Driver
from hjgc.runtime.backends.cuda_ports import STAGING_BYTES, Ports
from hjgc.runtime.errors import Cancelled, DeadlineExceeded
from hjgc.runtime.function import PHASE, Function
from hjgc.runtime.opening_cuda import GPU, CodeRules, open_cuda
from tests.runtime.functions import AROUND
from tests.runtime.gpu_function import PARAMETERS, AddingDriver, write_gpu_function
from tests.runtime.gpu_plan import FakeChild
from tests.runtime.norms import CODE
from tests.runtime.serving import PATIENCE

Array = Any  # of numpy

PAIR = "pair (float[N,4] a, float[N,M] b) => (c, d) { c = Exp(a) d = Neg(b) }"
SIZES = {"N": (0, 8), "M": (0, 8)}
TEXT = """text (string[N] x, float[N] a) => (string[N] y, b, float[K] c)
{ y = Identity(x) b = Exp(a) n = NonZero(b) k = Cast <to = 1> (n) c = Squeeze(k) }"""
"""Values that only the host holds, given, computed and taken."""
COUNTED = """counted (float[N] x) => (y, k, z) {
    y = Exp(x) k = NonZero(y) t = Cast <to = 8> (y) u = Cast <to = 1> (t) z = Neg(u)
}"""
"""An island between two launches gives what the host holds and what lies in a buffer."""


def floats(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.fixture
def driver() -> AddingDriver:
    return AddingDriver()


@pytest.fixture
def backend(tmp_path: Path, driver: AddingDriver) -> Generator[CudaBackend]:
    """Of PAIR."""
    path = write_gpu_function(tmp_path, PAIR, SIZES)
    with load(path) as file:
        opened = CudaBackend(file, path.parent, driver=cast(Driver, driver))
    driver.log.clear()
    yield opened
    opened.close()


Opening = Callable[..., Function]


@pytest.fixture
def opening(tmp_path: Path, driver: AddingDriver) -> Generator[Opening]:
    """Opens functions on the driver, and closes them."""
    functions: list[Function] = []

    def open_function(
        text: str = PAIR, sizes: Any = SIZES, *, target: str = "sm_90", child: FakeChild | None = None, **options: Any
    ) -> Function:
        with PlanFile(write_gpu_function(tmp_path, text, sizes, target=target)) as file:
            source = open_cuda(file, tmp_path, GPU, CodeRules(), driver=driver, start=(child or FakeChild()).start)
        served = cast(FunctionBackend, source.backend)
        functions.append(Function(source.choice.plan, served, source=source, **options))
        driver.log.clear()
        return functions[-1]

    yield open_function
    for function in functions:
        function.close()


def check_pair(function: Function, n: int, m: int) -> None:
    a, b = floats(n, 4), floats(n, m)
    found = function({"a": a, "b": b})
    np.testing.assert_array_equal(found["c"], a + 1)
    np.testing.assert_array_equal(found["d"], b + 1)


def test_the_backend_keeps_the_protocol_of_functions(backend: CudaBackend) -> None:
    served: FunctionBackend = backend
    assert served.missing(PHASE, (2, 3)) == ()  # type: ignore[attr-defined] (of a CodeBackend)


def test_arguments_go_up_launches_follow_the_sizes_and_results_come_after_one_wait(
    backend: CudaBackend, driver: AddingDriver
) -> None:
    for n, m, grids in ((2, 3, (2, 2)), (8, 8, (8, 16)), (2, 3, (2, 2))):
        a, b = floats(n, 4), floats(n, m)
        backend.write_arguments(PHASE, (n, m), [a, b])
        assert backend.run(PHASE, (0, 1), (n, m))
        c, d = backend.read_results(PHASE, (n, m))
        np.testing.assert_array_equal(c, a + 1)
        np.testing.assert_array_equal(d, b + 1)
        assert driver.log == [
            *["send"] * 2, *(f"launch {grid} full" for grid in grids), *["fetch"] * 2, "wait stream1"
        ]  # fmt: skip
        driver.log.clear()


def test_arguments_may_be_changed_and_results_stay_as_they_are(backend: CudaBackend) -> None:
    a, b = floats(2, 4), floats(2, 3)
    backend.write_arguments(PHASE, (2, 3), [a, b])
    expected = a + 1
    a[:] = 7
    backend.run(PHASE, (0, 1), (2, 3))
    c, _ = backend.read_results(PHASE, (2, 3))
    backend.write_arguments(PHASE, (2, 3), [b.repeat(2, 1)[:, :4], b])
    backend.run(PHASE, (0, 1), (2, 3))
    backend.read_results(PHASE, (2, 3))
    np.testing.assert_array_equal(c, expected)


def test_arrays_that_lie_otherwise_are_put_in_order(backend: CudaBackend) -> None:
    a, b = floats(4, 2).T, floats(2, 6)[:, ::2]
    backend.write_arguments(PHASE, (2, 3), [a, b])
    backend.run(PHASE, (0, 1), (2, 3))
    c, d = backend.read_results(PHASE, (2, 3))
    np.testing.assert_array_equal(c, a + 1)
    np.testing.assert_array_equal(d, b + 1)


def test_a_call_that_was_given_up_is_waited_for_before_the_next_uses_its_staging(
    backend: CudaBackend, driver: AddingDriver
) -> None:
    backend.write_arguments(PHASE, (2, 3), [floats(2, 4), floats(2, 3)])
    driver.log.clear()
    backend.write_arguments(PHASE, (2, 3), [floats(2, 4), floats(2, 3)])
    assert driver.log == ["wait stream1", "send", "send"]


@pytest.mark.parametrize("most", [64, 256, 512])
def test_what_does_not_fit_its_staging_together_goes_in_parts(
    most: int, backend: CudaBackend, driver: AddingDriver
) -> None:
    ports = Ports(cast(Driver, driver), backend._plan, backend._memory, "stream1", backend._values, most)
    assert ports.bytes == most < STAGING_BYTES
    for n, m in ((8, 8), (1, 1), (0, 3)):
        a, b = floats(n, 4), floats(n, m)
        ports.write(PHASE, (n, m), [a, b])
        backend.run(PHASE, (0, 1), (n, m))
        c, d = ports.read(PHASE, (n, m))
        np.testing.assert_array_equal(c, a + 1)
        np.testing.assert_array_equal(d, b + 1)
    driver.wait("stream1")
    ports.close()


def test_a_graph_keeps_its_sizes_while_launches_have_others(backend: CudaBackend, driver: AddingDriver) -> None:
    graphs = {rows: backend.build(PHASE, (0, 1), rows) for rows in ((2, 3), (8, 8))}
    for rows in ((8, 8), (2, 3), (8, 8)):
        a, b = floats(rows[0], 4), floats(*rows)
        backend.run(PHASE, (0, 1), (1, 1))
        backend.write_arguments(PHASE, rows, [a, b])
        backend.replay(graphs[rows], rows)
        c, d = backend.read_results(PHASE, rows)
        np.testing.assert_array_equal(c, a + 1)
        np.testing.assert_array_equal(d, b + 1)
    with pytest.raises(RunError, match="expected the sizes 2x3 for this graph, found 8x8"):
        backend.replay(graphs[2, 3], (8, 8))


def test_launches_are_fitted_once_to_sizes_that_take_turns(backend: CudaBackend, driver: AddingDriver) -> None:
    configured: list[Any] = []
    configure = driver.configure
    driver.configure = lambda *given: configured.append(given) or configure(*given)  # type: ignore[method-assign]
    for n in (2, 5, 2, 5, 2):
        backend.run(PHASE, (0, 1), (n, 3))
    assert len(configured) == 2 + 1  # at 2 x 3 both launches have grids of 2


def test_a_snapshot_has_the_bytes_of_a_buffer_at_its_sizes(backend: CudaBackend) -> None:
    a, b = floats(2, 4), floats(2, 3)
    backend.write_arguments(PHASE, (2, 3), [a, b])
    refs = [MemoryRef("buffer", index, PHASE) for index in (0, 1)]
    saved = backend.snapshot(refs, 0, (2, 3))
    assert [saved[ref].tobytes() for ref in refs] == [a.tobytes(), b.tobytes()]
    digests = backend.digest(refs, 0, (2, 3))
    backend.fill(refs, 0, (2, 3), 0xA5)
    assert set(backend.snapshot(refs, 0, (2, 3))[refs[1]]) == {0xA5}
    backend.restore(saved, 0, (2, 3))
    assert backend.digest(refs, 0, (2, 3)) == digests
    empty = MemoryRef("buffer", 1, PHASE)
    backend.fill([empty], 0, (2, 0), 0xA5)
    backend.restore(backend.snapshot([empty], 0, (2, 0)), 0, (2, 0))
    assert backend.digest(refs, 0, (2, 3)) == digests


def test_a_function_is_served_plainly_and_then_by_graphs_of_its_sizes(opening: Opening, driver: AddingDriver) -> None:
    function = opening()
    for n in (2, 8, 0):
        check_pair(function, n, 3)
    assert function.wait_captured(PATIENCE)
    driver.log.clear()
    for n in (2, 8, 0):
        check_pair(function, n, 3)
    assert [line for line in driver.log if line.startswith(("launch", "replay"))] == [
        "replay 2 2", "replay 8 6", "replay 1 1"
    ]  # fmt: skip
    report = function.report()
    assert (report["totals"]["promoted"], report["totals"]["hits"], report["code"]["target"]) == (3, 3, "sm_90")
    assert report["memory"]["staging"] > 0


def test_a_graph_that_adds_something_else_is_quarantined(opening: Opening, driver: AddingDriver) -> None:
    function = opening()
    driver.wrong_replays = True
    check_pair(function, 2, 3)
    assert function.wait_captured(PATIENCE)
    (segment,) = function.report()["segments"]
    assert (segment["state"], segment["quarantine"]["launch"]) == ("QUARANTINED", 1)
    check_pair(function, 2, 3)


def test_islands_run_between_graphs_and_their_staging_grows(
    opening: Opening, driver: AddingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_islands, "FUNCTION_STAGING", 512)
    function = opening(AROUND, {"N": (1, 64)})
    for _ in range(2):
        for n in (1, 64, 2):
            a = floats(n, 4)
            for go in (True, False):
                found = function({"a": a, "go": go})["y"]
                np.testing.assert_allclose(found, (np.sin(a + 1) if go else np.cos(a + 1)) + 1, rtol=1e-5)
        assert function.wait_captured(PATIENCE)
    report = function.report()
    assert (report["totals"]["promoted"], report["islands"]["bytes_to_device"] > 0) == (6, True)
    assert report["totals"]["hits"] >= 12


def test_text_and_shapes_that_depend_on_numbers_stay_with_the_host(opening: Opening) -> None:
    function = opening(TEXT, {"N": (0, 8)})
    for words in (["one", "two", "three"], ["four"]):
        a = np.arange(len(words), dtype=np.float32) - 1
        found = function({"x": words, "a": a})
        assert found["y"].tolist() == words
        np.testing.assert_array_equal(found["b"], a + 1)
        assert found["c"].tolist() == np.flatnonzero(a + 1).tolist()


def test_what_an_island_left_with_the_host_stays_as_it_is(opening: Opening) -> None:
    function = opening(COUNTED, {}, capture=False)
    found = [function({"x": x})["k"] for x in ([1, -1, 2], [-1, 1, 2], [-1, -1, 1], [1, 1, 1])]
    assert [k.tolist() for k in found] == [[[0, 2]], [[1, 2]], [[2]], [[0, 1, 2]]]


@pytest.mark.parametrize("later", [[-1, 1, 2], [1, 1, 1]])
def test_a_check_with_an_earlier_call_leaves_the_results_of_a_later_one_alone(
    later: list[int], opening: Opening, driver: AddingDriver
) -> None:
    function, may_build, instantiate = opening(COUNTED, {}), threading.Event(), driver.instantiate
    driver.instantiate = lambda *given: instantiate(*given) if may_build.wait(PATIENCE) else ()  # type: ignore
    function({"x": [1, -1, 2]})
    found = function({"x": later})
    may_build.set()
    assert function.wait_captured(PATIENCE)
    assert function.report()["totals"]["promoted"] == 2
    assert found["k"].tolist() == [np.flatnonzero(np.add(later, 1)).tolist()]


def test_nothing_is_copied_of_axes_of_nothing(opening: Opening, driver: AddingDriver) -> None:
    function = opening(AROUND, {"N": (0, 8)}, capture=False)
    assert function({"a": floats(0, 4), "go": True})["y"].shape == (0, 4)
    assert (driver.log.count("send"), driver.log.count("fetch")) == (1, 1)  # of `go`


def builder() -> FakeChild:
    """Builds the one kernel for whatever chip."""
    return FakeChild(lambda request: BuildAnswer(BuiltVariant("add", PARAMETERS, 128, 0, False, None, CODE)))


def test_code_for_another_chip_is_built_before_the_first_call(opening: Opening) -> None:
    child = builder()
    function = opening(target="sm_80", child=child)
    assert [request.target for request in child.asked] == ["sm_90"]
    check_pair(function, 2, 3)
    assert function.wait_captured(PATIENCE)
    assert (function.report()["target"], function.report()["totals"]["promoted"]) == ("sm_90", 1)


def test_better_code_takes_over_between_two_calls_and_its_graphs_are_made_anew(opening: Opening) -> None:
    child = builder()
    child.may_answer.clear()
    function = opening(target="compute_80", child=child)
    check_pair(function, 2, 3)
    assert function.wait_captured(PATIENCE)
    assert function.report()["code"]["fallback"]
    child.may_answer.set()
    assert function.wait_built(PATIENCE)
    assert function.report()["code"]["swaps"] == ["compute_80 gave way to sm_90"]
    assert function.report()["totals"]["cold"] == 1
    for hits in (0, 1):
        check_pair(function, 2, 3)
        assert function.wait_captured(PATIENCE)
        assert (function.report()["totals"]["promoted"], function.report()["totals"]["hits"]) == (1, hits)


def test_a_call_is_cancelled_between_two_launches(opening: Opening, driver: AddingDriver) -> None:
    function = opening(capture=False)
    launch = driver.launch

    def cancel(*given: Any) -> None:
        launch(*given)
        function.cancel()

    driver.launch = cancel  # type: ignore[method-assign]
    with pytest.raises(Cancelled, match="the call was cancelled in a static segment"):
        function({"a": floats(2, 4), "b": floats(2, 3)})
    assert sum(line.startswith("launch") for line in driver.log) == 1
    driver.launch = launch  # type: ignore[method-assign]
    check_pair(function, 2, 3)


def test_a_deadline_that_has_passed_ends_a_call(opening: Opening, driver: AddingDriver) -> None:
    function = opening(capture=False)
    with pytest.raises(DeadlineExceeded):
        function({"a": floats(2, 4), "b": floats(2, 3)}, deadline=0)
    assert not any(line.startswith("launch") for line in driver.log)
    check_pair(function, 2, 3)


def test_what_the_driver_refuses_is_an_error_of_the_call_and_the_next_is_served(
    opening: Opening, driver: AddingDriver
) -> None:
    function = opening(capture=False)
    driver.refuses = {"fetch"}
    with pytest.raises(RunError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        function({"a": floats(2, 4), "b": floats(2, 3)})
    driver.refuses = set()
    check_pair(function, 2, 3)


def test_an_arena_that_the_device_has_no_room_for_says_what_to_compile_with(tmp_path: Path) -> None:
    driver = AddingDriver()
    allocate, sizes = driver.allocate, list[int]()

    def refuse(size: int) -> int:
        sizes.append(size)
        driver.refuses = {"allocate"} if len(sizes) == 2 else set()
        return allocate(size)

    driver.allocate = refuse  # type: ignore[method-assign]
    path = write_gpu_function(tmp_path, PAIR, SIZES)
    with load(path) as file, pytest.raises(RunError, match=r"OUT_OF_MEMORY.*compile with smaller ranges, --size"):
        CudaBackend(file, path.parent, driver=cast(Driver, driver))


def test_everything_is_given_back_when_a_function_closes(opening: Opening, driver: AddingDriver) -> None:
    function = opening(AROUND, {"N": (1, 8)})
    function({"a": floats(2, 4), "go": True})
    assert function.wait_captured(PATIENCE)
    function.close()
    assert driver._memory == {} and driver._locked == {}
    assert driver.log[-1] == "close"
