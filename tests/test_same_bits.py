"""Are the logits the same to the bit on every path that means the same?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjgc.compiler import compile_model
from hjgc.models.export import export_model
from hjgc.runtime.opening import open_session
from tests.models.checkpoints import write_checkpoint

LENGTHS = (1, 5, 12, 13, 100, 130)
STEPS = 8


@pytest.fixture(scope="module", params=("qknorm", "bias"))
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bits")
    write_checkpoint(folder, variant=request.param, seed=11)
    export_model(folder, folder / "model.onnx")
    yield compile_model(folder / "model.onnx", folder / "plan.hjg", prompt=(1, 128), context=256).path


def bits(session: Any, length: int, **sampling: float) -> tuple[bytes, list[int]]:
    """The logits of prompt and answer as bytes, and the tokens."""
    ids = np.random.default_rng(length).integers(3, 199, length).tolist()
    with session.request(logits=True) as request:
        tokens = [request.prefill(ids, sampling)]
        rows = [request.logits().tobytes()]
        for _ in range(STEPS):
            tokens.append(request.decode())
            rows.append(request.logits().tobytes())
    return b"".join(rows), tokens


def states(session: Any) -> set[str]:
    return {entry["state"] for entry in session.report()["segments"] if "state" in entry}


def test_plain_and_graph_and_twice_and_after_other_requests(plan: Path) -> None:
    with open_session(plan, capture=False) as plain:
        wanted = {length: bits(plain, length) for length in LENGTHS}
        assert {length: bits(plain, length) for length in LENGTHS} == wanted, "twice"
    with open_session(plan) as session:
        assert {length: bits(session, length) for length in LENGTHS} == wanted, "first requests"
        assert session.wait_captured(60)
        before = session.metrics()
        assert {length: bits(session, length) for length in reversed(LENGTHS)} == wanted, "graphs"
        assert "PROMOTED" in states(session) and "QUARANTINED" not in states(session)
        assert session.metrics() != before
        for length in range(1, 60):
            bits(session, length, temperature=1.0, seed_low=length)
        assert {length: bits(session, length) for length in LENGTHS} == wanted, "after other requests"


def test_evicted_and_built_again(plan: Path) -> None:
    with open_session(plan, capture=False) as plain:
        wanted = {length: bits(plain, length) for length in LENGTHS}
    with open_session(plan, graph_bytes=250_000) as session:
        for _ in range(3):
            for length in LENGTHS:
                assert bits(session, length) == wanted[length]
                session.wait_captured(60)
        history = [entry for entry in session.report()["segments"] if "EVICTED" in str(entry.get("history", ""))]
        assert history, "the budget forced no eviction"


def test_a_sampled_answer_is_the_same_for_the_same_seed_on_every_path(plan: Path) -> None:
    sampling = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed_low": 9}
    with open_session(plan, capture=False) as plain:
        wanted = bits(plain, 17, **sampling)
        assert bits(plain, 17, **{**sampling, "seed_low": 10})[1] != wanted[1]
    with open_session(plan) as session:
        bits(session, 17, **sampling)
        session.wait_captured(60)
        assert bits(session, 17, **sampling) == wanted
