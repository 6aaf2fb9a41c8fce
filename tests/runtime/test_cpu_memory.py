"""Does the CPU backend tell its memory, and fill what a snapshot would hold and no more?"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from hjgc import plan_format
from hjgc.plan_format import load
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.runtime.backend import Backend, MemoryRef
from hjgc.runtime.backends.cpu import CpuBackend
from tests.plans import CONSTANTS, small_plan, weights_file


@pytest.fixture
def backend(tmp_path: Path) -> CpuBackend:
    plan = small_plan()
    (tmp_path / "weights.bin").write_bytes(weights_file(plan))
    files = (fingerprint(tmp_path / "weights.bin", "weights.bin"),)
    plan = msgspec.structs.replace(plan, files=files)
    plan_format.save(tmp_path / "small.hjg", plan, sections={"constants": CONSTANTS})
    with load(tmp_path / "small.hjg") as file:
        return CpuBackend(file, tmp_path)


def test_the_backend_keeps_the_protocol(backend: CpuBackend) -> None:
    served: Backend = backend
    assert (served.name, served.asynchronous, served.thread_pools) == ("cpu", False, True)


def test_memory_is_told_by_what_holds_it(backend: CpuBackend) -> None:
    before, ledger = backend.memory(), small_plan().ledger
    lasting = ledger.weights + ledger.states + ledger.constants + ledger.parameters
    assert before == {"lasting": lasting, "arena": ledger.arena, "graphs": 0, "staging": 0}
    graph = backend.build("decode", (0, 1), 1)
    assert backend.memory()["graphs"] == graph.bytes > 0
    backend.release(graph)
    assert backend.memory() == before
    backend.close()
    assert sum(backend.memory().values()) < sum(before.values())


def test_a_fill_writes_what_a_snapshot_holds_and_no_more(backend: CpuBackend) -> None:
    caches = [MemoryRef("state", i) for i, state in enumerate(small_plan().states) if state.kind == "full_cache"]
    refs = [caches[0], MemoryRef("buffer", 0, "prefill")]
    before = backend.snapshot(caches[:1], 0, 8)[caches[0]]
    backend.fill(refs, 3, 2, 0xA5)
    assert all((contents == 0xA5).all() for contents in backend.snapshot(refs, 3, 2).values())
    backend.fill(refs[:1], 3, 2, 0)
    assert np.array_equal(backend.snapshot(caches[:1], 0, 8)[caches[0]], before)
