"""Are the logits the same to the bit on every path of the GPU that means the same, and is memory flat?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hjgc.runtime.backends import cuda_launch
from hjgc.runtime.opening import open_session
from hjgc.runtime.runner import State
from tests.gpu.served import bits, plan, prompt

LENGTHS = (1, 5, 16, 17, 33, 64, 65, 100, 129, 200, 257, 320, 400, 511, 600)
SAMPLING: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "seed_low": 9,
}
ONE_GRAPH = 700_000
"""Bytes: room for a graph or two of the small model."""


@pytest.fixture(scope="module", params=("qknorm", "bias"))
def wanted(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What plain launches give."""
    with open_session(plan(request.param), device="cuda", capture=False) as session:
        found = {length: bits(session, length) for length in LENGTHS}
        assert {length: bits(session, length) for length in LENGTHS} == found, "twice"
    return {"variant": request.param, "bits": found}


def states(session: Any) -> set[str]:
    return {entry["state"] for entry in session.report()["segments"] if "state" in entry}


def test_graphs_padded_and_after_a_thousand_other_requests(wanted: dict[str, Any]) -> None:
    with open_session(plan(wanted["variant"]), device="cuda") as session:
        assert {length: bits(session, length) for length in LENGTHS} == wanted["bits"], "first requests"
        assert session.wait_captured(60)
        assert {length: bits(session, length) for length in LENGTHS} == wanted["bits"], "graphs"
        assert State.PROMOTED in states(session) and State.QUARANTINED not in states(session)
        rng = np.random.default_rng(1)
        for number in range(1000):
            with session.request() as request:
                request.prefill(prompt(int(rng.integers(1, 512)), 199, number), SAMPLING if number % 3 else {})
                for _ in range(number % 4):
                    request.decode()
        assert {length: bits(session, length) for length in LENGTHS} == wanted["bits"], "after other requests"


def test_evicted_and_built_again(wanted: dict[str, Any]) -> None:
    with open_session(plan(wanted["variant"]), device="cuda", graph_bytes=ONE_GRAPH) as session:
        for _ in range(3):
            for length in LENGTHS:
                assert bits(session, length) == wanted["bits"][length]
                session.wait_captured(60)
        assert session.report()["budget"]["evictions"] > 0


def test_without_programmatic_launches(wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_launch.Kernels, "overlaps", lambda *_: False)
    with open_session(plan(wanted["variant"]), device="cuda") as session:
        for _ in range(2):
            assert {length: bits(session, length) for length in LENGTHS} == wanted["bits"]
            session.wait_captured(60)


def test_with_an_arena_full_of_nan_before_each_run(wanted: dict[str, Any]) -> None:
    with open_session(plan(wanted["variant"]), device="cuda") as session:
        backend: Any = session._backend
        memory = backend._memory
        for _ in range(2):
            for length in LENGTHS:
                backend._driver.make_current()
                size = session.plan.arena_bytes
                backend._driver.fill_rows(memory._arena, size, size, 1, 0xFF, backend._stream)
                assert bits(session, length) == wanted["bits"][length]
            session.wait_captured(60)


def test_a_sampled_answer_is_the_same_for_the_same_seed_on_every_path() -> None:
    with open_session(plan("gqa"), device="cuda", capture=False) as plain:
        wanted = bits(plain, 17, 32, **SAMPLING)
        assert bits(plain, 17, 32, **{**SAMPLING, "seed_low": 10}) != wanted
    with open_session(plan("gqa"), device="cuda") as session:
        bits(session, 17, 2, **SAMPLING)
        session.wait_captured(60)
        assert bits(session, 17, 32, **SAMPLING) == wanted


def test_steps_launched_ahead_give_the_tokens_of_steps_that_are_not() -> None:
    ids = prompt(50, 199)
    with open_session(plan("gqa"), device="cuda") as session:
        for _ in range(2):
            with session.request() as request:
                ahead = [request.prefill(ids, {}), *(request.decode() for _ in range(40))]
            with session.request(logits=True) as request:
                assert [request.prefill(ids, {}), *(request.decode() for _ in range(40))] == ahead
            session.wait_captured(60)
        assert session.report()["launch_ahead"]["steps"] > 0


def test_three_thousand_mixed_requests_leave_memory_flat_and_no_wrong_token() -> None:
    rng = np.random.default_rng(3)
    lengths = [int(n) for n in rng.integers(1, 512, 24)]
    with open_session(plan("demo"), device="cuda", graph_bytes=2_000_000) as session:
        vocabulary = session.plan.model.vocab_size
        answers = {n: _tokens(session, prompt(n, vocabulary), 6) for n in lengths}
        free: set[int] = set()
        for number in range(3000):
            n = lengths[int(rng.integers(len(lengths)))]
            assert _tokens(session, prompt(n, vocabulary), 6) == answers[n], f"request {number}"
            if number % 10 == 9:
                session.wait_captured(60)
            if number >= 300 and number % 100 == 0:
                free.add(session.report()["memory"]["free"])
        assert session.report()["budget"]["evictions"] > 10
        assert len(free) == 1, f"device memory moved: {sorted(free)}"


def _tokens(session: Any, ids: list[int], steps: int) -> list[int]:
    with session.request() as request:
        return [request.prefill(ids, {}), *(request.decode(last=i == steps - 1) for i in range(steps))]
