"""Does the CUDA backend ask the driver for what the plan says? A fake one keeps memory and a log; nothing computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from hjgc.plan_format import PlanError, load, save
from hjgc.plan_format.structs import Source
from hjgc.runtime.backend import Backend, BackendRefused, MemoryRef
from hjgc.runtime.backends.cuda import CudaBackend, from_float32, to_float32
from hjgc.runtime.backends.cuda_driver import Driver, DriverError, LaunchShape
from tests.runtime.norms import CODE, COLUMNS, KINDS, ROWS, write_plan

WIDTHS = (8, 8, 8, 8, 4, 4, 8, 8)


class FakeDriver:
    """Addresses lead to bytes that live here; kernels are written down with the parameters that they would get."""

    def __init__(self, target: str = "sm_90") -> None:
        self.target = target
        self.log: list[str] = []
        self.widths: tuple[int, ...] = WIDTHS
        self.refuses: set[str] = set()
        self._memory: dict[int, np.ndarray] = {}
        self._handles = 0

    def _handle(self, what: str) -> str:
        self._handles += 1
        return f"{what}{self._handles}"

    def _do(self, name: str) -> None:
        if name in self.refuses:
            raise DriverError(name, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory")
        self.log.append(name)

    def make_current(self) -> None: ...

    def close(self) -> None:
        self._do("close")

    def allocate(self, size: int) -> int:
        self._do("allocate")
        address = (len(self._memory) + 1) << 32
        self._memory[address] = np.full(size, 0xEE, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self._memory[address]
        self._do("free")

    def _at(self, address: int, size: int) -> np.ndarray:
        base = max(base for base in self._memory if base <= address)
        piece = self._memory[base][address - base : address - base + size]
        assert len(piece) == size, "outside what was allocated"
        return piece

    def zero(self, address: int, size: int, stream: str) -> None:
        self._at(address, size)[:] = 0

    def write(self, address: int, data: np.ndarray, stream: str) -> None:
        self._do("write")
        self._at(address, data.nbytes)[:] = data

    def read(self, address: int, size: int, stream: str) -> np.ndarray:
        return self._at(address, size).copy()

    def make_stream(self) -> str:
        return self._handle("stream")

    def wait(self, stream: str) -> None:
        self._do(f"wait {stream}")

    def drop_stream(self, stream: str) -> None:
        self._do(f"drop {stream}")

    def load_module(self, code: bytes) -> str:
        self._do("load_module")
        assert code == CODE
        return self._handle("module")

    def unload_module(self, module: str) -> None:
        self._do("unload_module")

    def function(self, module: str, entry: str, shared_bytes: int) -> str:
        return entry

    def parameter_widths(self, function: str) -> tuple[int, ...]:
        return self.widths

    def configure(self, shape: LaunchShape, overlap: bool, stream: str) -> tuple[LaunchShape, bool, str]:
        return shape, overlap, stream

    def launch(self, config: tuple[LaunchShape, bool, str], function: str, parameters: int) -> None:
        shape, overlap, stream = config
        self._do(f"launch {function}{shape.grid} x {shape.threads} {'early' if overlap else 'full'} on {stream}")
        self.parameters = values_at(parameters)

    def make_graph(self) -> list[str]:
        return []

    def make_node(self, shape: LaunchShape, function: str, parameters: int) -> dict[str, Any]:
        return {"shape": shape, "function": function, "parameters": parameters}

    def resize(self, node: dict[str, Any], shape: LaunchShape) -> None:
        node["shape"] = shape

    def add_kernel(self, graph: list[str], node: dict[str, Any], before: Sequence[int], early: Sequence[bool]) -> int:
        self._do("add_kernel")
        after = " ".join(f"{n}{'early' if kind else 'full'}" for n, kind in zip(before, early, strict=True))
        blocks, rows = node["shape"].grid[0], values_at(node["parameters"])[4]
        graph.append(f"{node['function']} of {blocks} for {rows} after {after or 'nothing'}")
        return len(graph) - 1

    def instantiate(self, graph: list[str], stream: str) -> tuple[str, ...]:
        self._do(f"instantiate on {stream}")
        return tuple(graph)

    def drop_graph(self, graph: list[str]) -> None:
        self._do("drop_graph")

    def replay(self, executable: tuple[str, ...], stream: str) -> None:
        self._do(f"replay on {stream}")

    def drop_executable(self, executable: tuple[str, ...]) -> None:
        self._do("drop_executable")


def values_at(parameters: int) -> tuple[Any, ...]:
    """What the driver would copy: each parameter read from where its address says."""
    import ctypes

    addresses = (ctypes.c_uint64 * len(KINDS)).from_address(parameters)
    types = {"pointer": ctypes.c_uint64, "scratch": ctypes.c_uint64, "int32": ctypes.c_int32, "float32": ctypes.c_float}
    return tuple(types[kind].from_address(address).value for kind, address in zip(KINDS, addresses, strict=True))


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
    assert driver.log == ["write"] * 3
    backend.write_parameters({"length": 9})
    block = backend.snapshot([MemoryRef("parameters", 0)], 0, 1)[MemoryRef("parameters", 0)]
    assert block[:12].view(np.int32).tolist() == [3, 9, 5]
    assert block[12:28].view(np.float32).tolist() == [0, 0, 0.25, 0]
    assert block[28:36].view(np.uint32).tolist() == [0, 2**32 - 1]


def test_closing_gives_back_everything_that_was_taken_once(backend: CudaBackend, driver: FakeDriver) -> None:
    backend.close()
    backend.close()
    assert driver.log == [
        "free",
        "free",
        "unload_module",
        "wait stream2",
        "drop stream2",
        "wait stream1",
        "drop stream1",
        "close",
    ]


def test_a_plan_for_another_device_is_refused_with_the_option_that_mends_it(tmp_path: Path) -> None:
    driver = FakeDriver("sm_120")
    with pytest.raises(PlanError, match=r"expected code for sm_120.*found sm_90; compile with --target sm_120"):
        open_backend(write_plan(tmp_path), driver)
    assert driver.log[-1] == "close"


def test_code_with_another_digest_than_the_plans_is_never_loaded(tmp_path: Path, driver: FakeDriver) -> None:
    with pytest.raises(PlanError, match=r"variants\[0\].code.sha256"):
        open_backend(write_plan(tmp_path, code=CODE[::-1]), driver)
    assert "load_module" not in driver.log


def test_code_that_takes_other_parameters_than_the_plan_says_is_refused(tmp_path: Path, driver: FakeDriver) -> None:
    driver.widths = WIDTHS[:-1]
    with pytest.raises(PlanError, match=r"variants\[0\].parameters: expected parameters of"):
        open_backend(write_plan(tmp_path), driver)
    assert driver.log[-1] == "close"


def test_weights_that_would_have_to_be_converted_are_refused(tmp_path: Path, driver: FakeDriver) -> None:
    path = write_plan(tmp_path)
    with load(path) as file:
        plan = file.plan
    (weight,) = plan.weights
    half = Source(0, 0, 16, "float16", (COLUMNS,))
    other = msgspec.structs.replace(plan, weights=(msgspec.structs.replace(weight, sources=(half,)),))
    save(path, other, sections={"cubin": CODE})
    with pytest.raises(PlanError, match="expected float32, found float16: weights are not converted"):
        open_backend(path, driver)


def test_logits_go_to_the_nearest_bfloat16_and_back() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.5, 0.0], np.float32)  # the second and third lie halfway
    back = to_float32(from_float32(values, "bfloat16"), "bfloat16")
    assert back.tolist() == [1.0, 1.0, 1.015625, -3.5, 0.0]
