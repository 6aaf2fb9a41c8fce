"""What does a session on the GPU do when something breaks: serve plainly, or say clearly what is wrong?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format import PlanError
from hjgc.plan_format.errors import HjgcError
from hjgc.runtime.backends.cuda_driver import Driver, DriverError
from hjgc.runtime.llm import LLM
from hjgc.runtime.opening import open_session
from hjgc.runtime.runner import State
from hjgc.runtime.sampling_params import SamplingParams
from tests.gpu.served import bits, checkpoint, plan

LENGTHS = (7, 40, 130)


@pytest.fixture(scope="module")
def wanted() -> dict[int, bytes]:
    with open_session(plan("gqa"), device="cuda", capture=False) as session:
        return {length: bits(session, length) for length in LENGTHS}


def refuse(*_: Any) -> Any:
    raise DriverError("cuGraphInstantiate", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory")


def reasons(session: Any) -> set[str]:
    return {e["why"] for e in session.report()["segments"] if e.get("state") == State.REFUSED}


@pytest.mark.parametrize("verb", ["instantiate", "make_graph"])
def test_a_graph_that_the_driver_refuses_runs_plainly_and_says_why(
    verb: str, wanted: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, verb, refuse)
    with open_session(plan("gqa"), device="cuda") as session:
        for _ in range(2):
            assert {length: bits(session, length) for length in LENGTHS} == wanted
            session.wait_captured(60)
        assert all("CUDA_ERROR_OUT_OF_MEMORY (out of memory)" in why for why in reasons(session))
        assert len(reasons(session)) > 0


def test_a_build_that_fails_midway_leaves_nothing_behind(
    wanted: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Driver.add_kernel, iter(range(10**9))

    def failing(self: Driver, *arguments: Any) -> Any:
        return refuse() if next(calls) % 20 == 11 else add(self, *arguments)

    monkeypatch.setattr(Driver, "add_kernel", failing)
    with open_session(plan("gqa"), device="cuda") as session:
        for _ in range(2):
            assert {length: bits(session, length) for length in LENGTHS} == wanted
            session.wait_captured(60)
        assert reasons(session)
        assert session.report()["memory"]["graphs"] == session.report()["totals"]["bytes"]


def test_a_device_without_free_memory_serves_what_was_opened(wanted: dict[int, bytes]) -> None:
    with open_session(plan("gqa"), device="cuda") as session:
        driver = session._backend._driver  # type: ignore[attr-defined]
        driver.make_current()
        taken: list[int] = []
        size = driver.free_bytes()[0]
        while size > 1 << 16:
            try:
                taken.append(driver.allocate(size))
            except DriverError:
                size //= 2
        try:
            assert {length: bits(session, length) for length in LENGTHS} == wanted
            session.wait_captured(60)
            assert {length: bits(session, length) for length in LENGTHS} == wanted
        finally:
            for address in taken:
                driver.free(address)


def test_a_worker_that_dies_leaves_requests_alone(wanted: dict[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(plan("gqa"), device="cuda") as session:
        monkeypatch.setattr(session._worker, "_do_something", lambda: 1 / 0)
        assert {length: bits(session, length) for length in LENGTHS} == wanted
        thread = session._worker._thread
        assert thread is not None
        thread.join(60)
        assert {length: bits(session, length) for length in LENGTHS} == wanted
        assert session.report()["worker"]["state"].startswith("crashed: ZeroDivisionError")


def test_a_damaged_variant_is_named_before_anything_is_launched(tmp_path: Path) -> None:
    source = plan("gqa")
    data = bytearray(source.read_bytes())
    place = data.rindex(b"\x7fELF")
    data[place + 600] ^= 1
    damaged = tmp_path / "plan.hjg"
    damaged.write_bytes(bytes(data))
    with pytest.raises(PlanError, match="cubin"):
        open_session(damaged, weights=source.parent, device="cuda")


def test_a_plan_for_another_chip_says_which_it_is_for_where_nothing_may_be_built() -> None:
    model = checkpoint("gqa", "float16") / "model.onnx"
    other = compile_model(model, model.with_name("other.hjg"), targets=("sm_80",), context=64, portable=False).path
    with pytest.raises(HjgcError, match="sm_80"):
        open_session(other, device="cuda", strict=True)


def test_a_client_that_leaves_in_the_middle_leaves_the_session_usable() -> None:
    greedy = SamplingParams(max_tokens=24, temperature=0.0)
    with LLM(plan("demo"), device="cuda") as llm:
        whole = llm.generate("The list of", greedy)
        for _ in range(20):
            for number, _ in enumerate(llm.generate("If the file", SamplingParams(max_tokens=64), stream=True)):
                if number == 3:
                    break
        assert llm.generate("The list of", greedy).token_ids == whole.token_ids
