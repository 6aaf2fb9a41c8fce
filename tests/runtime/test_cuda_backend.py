"""Does the CUDA backend ask the driver for what the plan says? A fake one keeps memory and a log; nothing computes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hjgc.plan_format import PlanError, load, save
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ledger import graph_costs
from hjgc.plan_format.reasons import Reason, ReasonCode
from hjgc.plan_format.structs import (
    CaptureKey,
    DynamicSegment,
    Edge,
    HostCall,
    Launch,
    Plan,
    Schedule,
    Source,
    State,
    StaticSegment,
)
from hjgc.runtime.backend import Backend, BackendRefused, MemoryRef
from hjgc.runtime.backends.cuda import CudaBackend
from hjgc.runtime.backends.cuda_driver import Driver, DriverError
from hjgc.runtime.backends.cuda_staging import Uploads
from hjgc.runtime.backends.cuda_weights import STAGING_BYTES
from hjgc.runtime.backends.element_types import from_float32, to_float32
from tests.runtime.digests import digest
from tests.runtime.fake_driver import WIDTHS, FakeDriver
from tests.runtime.norms import CODE, COLUMNS, ROWS, norms_plan, write_plan


def open_backend(plan: Path, driver: FakeDriver) -> CudaBackend:
    with load(plan) as file:
        return CudaBackend(file, plan.parent, driver=cast(Driver, driver))


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def backend(tmp_path: Path, driver: FakeDriver) -> CudaBackend:
    opened = open_backend(write_plan(tmp_path), driver)
    driver.log.clear()
    return opened


def test_the_backend_keeps_the_protocol(backend: CudaBackend) -> None:
    served: Backend = backend
    assert served.name == "sm_90"


def test_a_launch_overlaps_only_the_one_issued_just_before_and_only_along_a_pdl_edge(
    backend: CudaBackend, driver: FakeDriver
) -> None:
    assert backend.run("norms", (0, 1, 2, 3), 7)
    assert driver.log == [
        f"launch norm(2, 1, 1) x 128 {kind} on stream1" for kind in ("full", "early", "full", "early")
    ]
    driver.log.clear()
    assert backend.run("norms", (1, 3), 7)
    assert driver.log == ["launch norm(2, 1, 1) x 128 full on stream1"] * 2


def test_a_kernel_gets_addresses_values_and_null_for_scratch(backend: CudaBackend, driver: FakeDriver) -> None:
    backend.run("norms", (2,), 7)
    lasting, arena, size = 1 << 32, 2 << 32, ROWS * COLUMNS * 4
    length = lasting + 256 + 768 + 4  # after the weight and the cache, 256-aligned, the second field
    x, weight, y, found_length, *rest = driver.parameters
    assert (x, weight, y) == (arena + 2 * size, lasting, arena + 3 * size)
    assert found_length == length
    assert rest == [700, 0.5, 0, 0]


def test_grid_and_values_follow_the_rows_from_call_to_call(backend: CudaBackend, driver: FakeDriver) -> None:
    for rows, blocks in ((1, 1), (16, 4), (5, 2)):
        driver.log.clear()
        backend.run("norms", (0,), rows)
        assert driver.log == [f"launch norm({blocks}, 1, 1) x 128 full on stream1"]
        assert driver.parameters[4] == 100 * rows


def test_a_run_that_is_told_to_stop_leaves_the_rest_out(backend: CudaBackend, driver: FakeDriver) -> None:
    answers = iter((False, False, True))
    assert not backend.run("norms", (0, 1, 2, 3), 7, lambda: next(answers))
    assert len(driver.log) == 2


def test_a_run_that_may_be_stopped_soon_keeps_the_device_close_behind(backend: CudaBackend, driver: FakeDriver) -> None:
    answers = iter((False, False, False, True))
    assert not backend.run("norms", (0, 1, 2, 3), 7, lambda: next(answers), 2)
    assert [line.split()[0] for line in driver.log] == ["launch", "launch", "wait", "launch"]


def test_a_graph_has_the_plans_edges_and_is_uploaded_beside_the_stream_that_serves(
    backend: CudaBackend, driver: FakeDriver
) -> None:
    graph = backend.build("norms", (0, 1, 2, 3), 16)
    assert graph.executable == (
        "norm of 4 for 1600 after nothing",
        "norm of 4 for 1600 after 0early",
        "norm of 4 for 1600 after 1full",
        "norm of 4 for 1600 after 2early",
    )
    assert driver.log[-2:] == ["instantiate on stream2", "drop_graph"]
    backend.replay(graph, 9)
    backend.release(graph)
    assert driver.log[-2:] == ["replay on stream1", "drop_executable"]


def test_graphs_for_other_rows_or_fewer_launches_follow_what_is_asked(backend: CudaBackend) -> None:
    assert backend.build("norms", (0,), 16).executable == ("norm of 4 for 1600 after nothing",)
    assert backend.build("norms", (1, 2), 2).executable == (
        "norm of 1 for 200 after nothing",
        "norm of 1 for 200 after 0full",
    )
    assert backend.build("norms", (3,), 16).executable == ("norm of 4 for 1600 after nothing",)


def test_a_build_pauses_before_every_node(backend: CudaBackend, driver: FakeDriver) -> None:
    pauses: list[int] = []
    backend.build("norms", (0, 1, 2), 16, lambda: pauses.append(sum(line.startswith("add") for line in driver.log)))
    assert pauses == [0, 1, 2]


def test_building_a_graph_leaves_the_launches_that_serve_alone(backend: CudaBackend, driver: FakeDriver) -> None:
    backend.run("norms", (0,), 5)
    backend.build("norms", (0,), 16)
    backend.run("norms", (0,), 5)
    assert driver.log[-1] == "launch norm(2, 1, 1) x 128 full on stream1"
    assert driver.parameters[4] == 500


def test_kernels_not_built_for_overlap_get_full_edges(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(write_plan(tmp_path, pdl=False), driver)
    assert all("early" not in node for node in backend.build("norms", (0, 1, 2, 3), 16).executable)


@pytest.mark.parametrize("call", ["add_kernel", "instantiate on stream2"])
def test_a_graph_that_the_driver_refuses_is_refused_in_its_words_and_leaves_nothing(
    call: str, backend: CudaBackend, driver: FakeDriver
) -> None:
    driver.refuses = {call}
    with pytest.raises(BackendRefused, match=r"CUDA_ERROR_OUT_OF_MEMORY \(out of memory\)"):
        backend.build("norms", (0, 1), 16)
    assert driver.log[-1] == "drop_graph"


def test_weights_are_in_place_and_the_cache_starts_at_zero(backend: CudaBackend, driver: FakeDriver) -> None:
    assert driver.read(1 << 32, 32, "").view(np.float32).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    cache = MemoryRef("state", 0)
    assert not backend.snapshot([cache], 0, ROWS)[cache].any()


def test_a_snapshot_of_a_cache_holds_some_rows_of_each_head_and_restoring_it_touches_no_other(
    backend: CudaBackend,
) -> None:
    cache = MemoryRef("state", 0)
    rows = np.arange(2 * (ROWS + 1) * 4, dtype=np.float32).reshape(2, ROWS + 1, 4)
    backend.restore({cache: rows.view(np.uint8).reshape(-1)}, 0, ROWS + 1)
    piece = backend.snapshot([cache], 3, 2)[cache]
    assert piece.view(np.float32).tolist() == rows[:, 3:5].reshape(-1).tolist()
    backend.restore({cache: np.zeros_like(piece)}, 3, 2)
    rows[:, 3:5] = 0
    assert backend.snapshot([cache], 0, ROWS + 1)[cache].view(np.float32).tolist() == rows.reshape(-1).tolist()


def test_a_snapshot_of_a_buffer_holds_its_first_rows(backend: CudaBackend) -> None:
    buffer = MemoryRef("buffer", 0, "norms")
    backend.restore({buffer: np.arange(3 * 32, dtype=np.uint8)}, 0, 3)
    assert backend.snapshot([buffer], 0, 2)[buffer].tolist() == list(range(64))


def test_fields_side_by_side_travel_in_one_copy_and_the_others_keep_what_they_held(
    backend: CudaBackend, driver: FakeDriver
) -> None:
    backend.write_parameters({"start": 3, "length": 4, "top_k": 5, "min_p": 0.25, "seed_high": 2**32 - 1})
    assert driver.log == ["send"] * 3
    backend.write_parameters({"length": 9})
    block = backend.snapshot([MemoryRef("parameters", 0)], 0, 1)[MemoryRef("parameters", 0)]
    assert block[:12].view(np.int32).tolist() == [3, 9, 5]
    assert block[12:28].view(np.float32).tolist() == [0, 0, 0.25, 0]
    assert block[28:36].view(np.uint32).tolist() == [0, 2**32 - 1]


def test_closing_gives_back_everything_that_was_taken_once(backend: CudaBackend, driver: FakeDriver) -> None:
    backend.close()
    backend.close()
    assert driver.log == [
        "wait stream1",  # before the page-locked memory goes that copies may still read
        *["drop_event"] * 4,
        "free_host",
        "unload digests",
        "free",
        "free",
        "free",
        "unload_module",
        "wait stream2",
        "drop stream2",
        "wait stream1",
        "drop stream1",
        "close",
    ]


def test_closing_after_an_error_of_the_device_gives_back_what_it_can_and_tells_the_error(
    backend: CudaBackend, driver: FakeDriver
) -> None:
    driver.refuses = {"wait stream1", "free_host", "unload_module"}
    with pytest.raises(BackendRefused, match="CUDA_ERROR_OUT_OF_MEMORY"):
        backend.close()
    assert driver.log == [*["drop_event"] * 4, "unload digests", *["free"] * 3, "wait stream2", "drop stream2", "close"]
    backend.close()
    assert driver.log.count("close") == 1


def test_the_context_is_given_back_even_if_memory_of_the_hosts_is_not() -> None:
    real = object.__new__(Driver)
    calls: list[str] = []

    def call(name: str, *arguments: object) -> None:
        calls.append(name)
        if name == "cuMemFreeHost":
            raise DriverError(name, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal address was met")

    vars(real).update(_call=call, _device=0, _context=0, _landing=np.zeros(1, np.uint8))
    with pytest.raises(DriverError, match="cuMemFreeHost"):
        real.close()
    assert calls == ["cuCtxSetCurrent", "cuMemFreeHost", "cuDevicePrimaryCtxRelease"]


def test_a_plan_for_another_device_is_refused_with_the_option_that_mends_it(tmp_path: Path) -> None:
    driver = FakeDriver("sm_120")
    with pytest.raises(PlanError, match=r"expected code for sm_120.*found sm_90; compile with --target sm_120"):
        open_backend(write_plan(tmp_path), driver)
    assert driver.log[-1] == "close"


def test_code_with_another_digest_than_the_plans_is_never_loaded(tmp_path: Path, driver: FakeDriver) -> None:
    with pytest.raises(PlanError, match=r"variants\[0\].built.code.sha256"):
        open_backend(write_plan(tmp_path, code=CODE[::-1]), driver)
    assert "load_module" not in driver.log


def test_code_that_takes_other_parameters_than_the_plan_says_is_refused(tmp_path: Path, driver: FakeDriver) -> None:
    driver.widths = WIDTHS[:-1]
    with pytest.raises(PlanError, match=r"variants\[0\].parameters: expected parameters of"):
        open_backend(write_plan(tmp_path), driver)
    assert driver.log[-1] == "close"


def with_source(path: Path, source: Source) -> Path:
    """The plan, its one weight of another source."""
    with load(path) as file:
        plan = file.plan
    (weight,) = plan.weights
    other = msgspec.structs.replace(plan, weights=(msgspec.structs.replace(weight, sources=(source,)),))
    save(path, other, sections={"cubin": CODE})
    return path


def test_weights_of_another_width_are_converted_on_the_way(tmp_path: Path, driver: FakeDriver) -> None:
    path = with_source(write_plan(tmp_path), Source(0, 0, 16, "float16", (COLUMNS,)))
    open_backend(path, driver)
    halves = np.arange(1, 5, dtype=np.float32).view(np.float16)
    assert driver.read(1 << 32, 32, "").view(np.float32).tolist() == halves.astype(np.float32).tolist()


def served_plan(folder: Path) -> Path:
    """A plan with a history and a token, as served ones have."""
    path = write_plan(folder)
    with load(path) as file:
        plan: Plan = file.plan
    more = (State("history", "token_history", "int32", (20,), 80), State("sampled", "sampled", "int32", (1,), 4))
    states = (*plan.states, *more)
    ledger = msgspec.structs.replace(plan.ledger, states=plan.ledger.states + 84, total=plan.ledger.total + 84)
    save(path, msgspec.structs.replace(plan, states=states, ledger=ledger), sections={"cubin": CODE})
    return path


SAMPLED = MemoryRef("state", 2)


def sample(backend: CudaBackend, token: int) -> None:
    """What a step leaves behind."""
    backend.restore({SAMPLED: np.array([token], np.int32).view(np.uint8)}, 0, 1)


def test_a_token_is_the_one_its_step_left_although_the_next_step_has_run(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    tickets: list[int] = []
    for token in (5, 6, 7):
        sample(backend, token)
        tickets.append(backend.send_token())
    sample(backend, 8)
    assert [backend.read_token(ticket) for ticket in tickets] == [5, 6, 7]


def test_tokens_by_the_hundred_use_the_same_few_slots(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    locked = driver.log.count("allocate_host")
    before: int | None = None
    for token in range(100):
        sample(backend, token)
        ticket = backend.send_token()
        if before is not None:
            assert backend.read_token(before) == token - 1
        before = ticket
    assert driver.log.count("allocate_host") == locked


FIELDS = ("start", "length", "top_k", "temperature", "top_p", "min_p", "repetition_penalty", "seed_low", "seed_high")


@pytest.mark.parametrize(("names", "copies"), [(FIELDS, 1), (FIELDS[::-1], 1), (("start", "length"), 2), ((), 1)])
def test_a_prompt_and_all_parameters_go_up_in_one_copy_that_waits_for_nothing(
    names: tuple[str, ...], copies: int, tmp_path: Path, driver: FakeDriver
) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    sample(backend, 7)
    backend.write_history(3, [15, 9])
    driver.log.clear()
    backend.write_parameters({name: i for i, name in enumerate(names, 1)}, [3, 1, 4])
    assert driver.log == ["send"] * copies
    history = MemoryRef("state", 1)
    assert backend.snapshot([history], 0, 1)[history][:20].view(np.int32).tolist() == [3, 1, 4, 15, 9]
    fields = backend._memory.read_fields()
    assert {name: fields[name] for name in names} == {name: i for i, name in enumerate(names, 1)}
    assert backend.read_token(backend.send_token()) == 7


def test_slots_are_used_again_without_a_token_in_between(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    for number in range(19):
        backend.write_parameters(dict.fromkeys(FIELDS, number), [100 + number])
        if number % 7 == 0:
            backend.send_token()
    history = MemoryRef("state", 1)
    assert backend.snapshot([history], 0, 1)[history][:4].view(np.int32).tolist() == [118]
    assert set(backend._memory.read_fields().values()) == {18}


@pytest.mark.parametrize("settles", [False, True])
def test_an_upload_waits_for_what_was_launched_up_to_the_copy_after_its_slots_last(
    settles: bool, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, waited, launched = driver.allocate(64), list[int](), list[int]()
    uploads = Uploads(cast(Driver, driver), "stream", 64)
    monkeypatch.setattr(driver, "wait_event", lambda event: waited.append(event["at"]))
    for _ in range(11):
        uploads.write(address, np.zeros(8, np.uint8))
        driver._issued += 1  # a launch behind the copy
        launched.append(driver._issued)
        if settles:
            uploads.settle()
    assert len(waited) >= 7 and waited == launched[: len(waited)]


def test_more_ids_than_the_history_holds_are_refused(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    for write in (
        lambda: backend.write_history(19, [1, 2]),
        lambda: backend.write_parameters(dict.fromkeys(FIELDS, 1), list(range(21))),
    ):
        with pytest.raises(RunError, match="expected at most 20 token ids, which the plan's history holds, found 21"):
            write()


def test_a_plan_without_a_history_holds_no_ids(backend: CudaBackend) -> None:
    with pytest.raises(RunError, match="expected at most 0 token ids"):
        backend.write_history(0, [1])


def test_an_upload_waits_for_its_slot_and_no_longer(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    history = MemoryRef("state", 1)
    for number in range(19):  # each waits, in the slot's turn, for the copy made four before it
        backend.write_history(number, [100 + number])
    found = backend.snapshot([history], 0, 1)[history].view(np.int32)
    assert found[:19].tolist() == [100 + number for number in range(19)]


def function_plan(folder: Path, dtype: DType) -> Path:
    """The norms in this type, a function of the caller's in place of the second."""
    plan = norms_plan(folder)
    (phase,) = plan.phases
    x, _, y = phase.launches[1].operands
    host = Launch("host", "host_function", (x, y), {"sm_90": HostCall("steer")})
    launches = (phase.launches[0], host, *phase.launches[2:])
    buffers = tuple(msgspec.structs.replace(buffer, dtype=dtype) for buffer in phase.buffers)
    key = CaptureKey(("tokens",), (2, 4, 8, 16))
    cut = DynamicSegment((1,), (Reason(1, ReasonCode.HOST_READ, ("host", "steer")),))
    schedule = Schedule("default", (StaticSegment((0,), key), cut, StaticSegment((2, 3), key)))
    edges = (Edge(0, 1), Edge(1, 2), phase.edges[2])
    changed = msgspec.structs.replace(phase, launches=launches, buffers=buffers, edges=edges, schedules=(schedule,))
    dtypes = msgspec.structs.replace(plan.dtypes, compute=dtype)
    ledger = msgspec.structs.replace(plan.ledger, graph=graph_costs((changed,)))
    plan = msgspec.structs.replace(plan, phases=(changed,), dtypes=dtypes, ledger=ledger)
    save(folder / "function.hjg", plan, sections={"cubin": CODE})
    return folder / "function.hjg"


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_function_gets_the_rows_that_count_in_float32_and_its_own_are_written_in_the_element_type(
    dtype: DType, returns: bool, tmp_path: Path, driver: FakeDriver
) -> None:
    backend = open_backend(function_plan(tmp_path, dtype), driver)
    x, y = MemoryRef("buffer", 1, "norms"), MemoryRef("buffer", 2, "norms")
    values = np.arange(4 * COLUMNS, dtype=np.float32).reshape(4, COLUMNS)
    backend.restore({x: from_float32(values, dtype), y: from_float32(0 * values - 1, dtype)}, 0, 4)

    def function(rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        assert rows.dtype == np.float32 and np.array_equal(rows, values[:3])
        if returns:
            return rows + 0.5
        rows += 0.5
        return None

    driver.log.clear()
    backend.call_host("norms", 1, 3, function)
    assert driver.log == ["write"]
    found = to_float32(backend.snapshot([y], 0, 4)[y], dtype).reshape(4, COLUMNS)
    assert np.array_equal(found[:3], values[:3] + 0.5) and (found[3] == -1).all()
    assert np.array_equal(to_float32(backend.snapshot([x], 0, 4)[x], dtype).reshape(4, COLUMNS), values)


def test_launches_around_a_function_are_captured_without_it(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(function_plan(tmp_path, "float32"), driver)
    driver.log.clear()
    assert backend.run("norms", (0,), 7) and backend.run("norms", (2, 3), 7)
    assert driver.log == [f"launch norm(2, 1, 1) x 128 {kind} on stream1" for kind in ("full", "full", "early")]
    assert [backend.build("norms", launches, 8).bucket for launches in ((0,), (2, 3))] == [8, 8]


def test_rows_of_a_cache_are_read_and_filled_in_one_call_for_all_heads(
    backend: CudaBackend, driver: FakeDriver
) -> None:
    cache = MemoryRef("state", 0)
    backend.fill([cache], 3, 2, 0xA5)
    piece = backend.snapshot([cache], 3, 2)[cache]
    assert driver.log == ["fill_rows", "read_rows"]
    assert (piece == 0xA5).all() and piece.size == 2 * 2 * 16
    whole = backend.snapshot([cache], 0, ROWS + 1)[cache].reshape(2, ROWS + 1, 16)
    assert not whole[:, :3].any() and not whole[:, 5:].any()


def test_a_buffer_is_filled_as_far_as_its_rows_go(backend: CudaBackend) -> None:
    buffer = MemoryRef("buffer", 0, "norms")
    backend.restore({buffer: np.zeros(3 * 32, np.uint8)}, 0, 3)
    backend.fill([buffer], 0, 2, 7)
    assert backend.snapshot([buffer], 0, 3)[buffer].tolist() == [7] * 64 + [0] * 32


def test_digests_are_made_on_the_device_of_what_a_snapshot_would_hold(backend: CudaBackend, driver: FakeDriver) -> None:
    cache, parameters = MemoryRef("state", 0), MemoryRef("parameters", 0)
    backend.fill([cache], 3, 2, 0xA5)
    driver.log.clear()
    found = backend.digest([cache, parameters], 3, 2)
    assert driver.log == ["digest_words", "digest_words"] and backend.digests_on == "device"
    pieces = backend.snapshot([cache, parameters], 3, 2)
    assert found == {ref: digest(data, 4) for ref, data in pieces.items()}
    backend.fill([cache], 4, 1, 0xA6)
    assert backend.digest([cache], 3, 2)[cache] != found[cache]
    assert backend.digest([cache], 3, 1) == {cache: digest(backend.snapshot([cache], 3, 1)[cache], 4)}


def test_a_device_that_refuses_the_kernels_of_digests_has_them_made_on_the_host(
    tmp_path: Path, driver: FakeDriver
) -> None:
    driver.refuses.add("digests")
    backend = open_backend(served_plan(tmp_path), driver)
    cache = MemoryRef("state", 0)
    assert backend.digests_on == "host: digests: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"
    before = backend.digest([cache], 3, 2)
    backend.fill([cache], 4, 1, 0xA5)
    assert backend.digest([cache], 3, 2) != before == backend.digest([cache], 0, 2)
    backend.close()


def test_memory_is_told_by_what_holds_it(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    before = backend.memory()
    assert before["lasting"] == 32 + 2 * (ROWS + 1) * 16 + 84 + 64
    assert before["arena"] == 5 * ROWS * COLUMNS * 4
    assert before["staging"] == 4 * (256 + 80) + 4 * 64
    assert before["staging_to_load"] == STAGING_BYTES == driver.most_locked - before["staging"]
    assert before["free"] < before["free_at_open"] <= before["total"]
    graph = backend.build("norms", (0, 1), 16)
    assert backend.memory()["graphs"] == graph.bytes > 0
    backend.release(graph)
    assert backend.memory() == before
    backend.close()
    assert backend.memory() == {}


def test_what_the_driver_says_while_a_token_is_awaited_is_a_refusal(tmp_path: Path, driver: FakeDriver) -> None:
    backend = open_backend(served_plan(tmp_path), driver)
    ticket = backend.send_token()
    driver.refuses = {"wait_event"}
    with pytest.raises(BackendRefused, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        backend.read_token(ticket)
    driver.refuses = set()
    assert isinstance(backend.read_token(ticket), int)


@pytest.mark.parametrize("call", ["allocate_host", "make_event"])
def test_an_opening_that_fails_gives_back_what_it_had(call: str, tmp_path: Path, driver: FakeDriver) -> None:
    driver.refuses = {call}
    with pytest.raises(BackendRefused, match="CUDA_ERROR_OUT_OF_MEMORY"):
        open_backend(served_plan(tmp_path), driver)
    for take, give in (("allocate", "free"), ("allocate_host", "free_host"), ("make_event", "drop_event")):
        assert driver.log.count(take) == driver.log.count(give)
    assert driver.log[-1] == "close"
