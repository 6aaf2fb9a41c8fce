"""Does a session on this card serve with code that its plan has not, and what is that code worth?

`pytest -m gpu tests/gpu/test_just_in_time.py -s` also prints how long requests took while kernels were built and
swapped in.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format import PlanError, RunError, load, save
from hjgc.runtime.opening import open_session
from tests.gpu.served import answered, bits, checkpoint, prompt, target

pytest.importorskip("triton")

PATIENCE = 600
VOCABULARY = 199
OTHER = "sm_89"
"""A chip that this one is not."""


@cache
def plan(*targets: str, high: int = 512, portable: bool = True) -> Path:
    folder = checkpoint("gqa", "float16")
    path = folder / f"{'-'.join(targets)}-{high}-{portable}.hjg"
    options: dict[str, Any] = {"targets": targets, "prompt": (1, high), "context": 1024, "portable": portable}
    return compile_model(folder / "model.onnx", path, dtype="float16", **options).path


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "cache"))


@cache
def expected(length: int) -> bytes:
    """What the code of the plan gives on this chip."""
    with open_session(plan(target()), device=target()) as session:
        return bits(session, length)


def largest_difference(one: Any, other: Any) -> float:
    """Between two answers' logits, relative to their spread, as long as both went on with the same token."""
    found = 0.0
    for row, expected_row, token, expected_token in zip(one[0], other[0], one[1], other[1], strict=True):
        found = max(found, float(np.abs(row - expected_row).max() / expected_row.std()))
        if token != expected_token:
            break
    return found


def test_code_rebuilt_from_installed_templates_gives_the_bits_of_the_plans_code() -> None:
    told: list[str] = []
    wanted = {length: expected(length) for length in (3, 40, 300)}
    with open_session(plan(target()), device="cuda", trust="templates", progress=told.append) as session:
        assert {length: bits(session, length) for length in wanted} == wanted
        code = session.report()["code"]
        assert set(code["just_in_time"]["reasons"]) == {"rebuild"}
        assert len(told) == code["just_in_time"]["built"] > 10
        assert session.wait_captured(60)
        assert {length: bits(session, length) for length in wanted} == wanted


def test_a_plan_of_another_template_is_not_rebuilt(tmp_path: Path) -> None:
    with load(plan(target())) as file:
        import msgspec

        first = msgspec.structs.replace(file.plan.templates[0], digest="0" * 64, files=())
        changed = msgspec.structs.replace(file.plan, templates=(first, *file.plan.templates[1:]))
        sections = {kind: file.section(kind) for kind in file.section_lengths() if kind not in ("plan", "debug")}
        save(tmp_path / "plan.hjg", changed, sections=sections)
    with pytest.raises(PlanError, match=f"template {first.name}: expected the text with the digest 000"):
        open_session(tmp_path / "plan.hjg", weights=plan(target()).parent, device="cuda", trust="templates")


def test_a_prompt_longer_than_planned_runs_in_chunks_and_then_with_kernels_of_its_own() -> None:
    short = plan(target(), high=64)
    with open_session(short, device="cuda") as session:
        in_chunks = answered(session, prompt(300, VOCABULARY), 4)
        assert session.wait_built(PATIENCE)
        code = session.report()["code"]
        assert code["just_in_time"]["failures"] == []
        assert set(code["just_in_time"]["reasons"]) == {"unplanned rows"}
        assert len(code["swaps"]) == 1
        assert largest_difference(in_chunks, answered(session, prompt(300, VOCABULARY), 4)) < 0.05
        assert bits(session, 300) == expected(300)
        assert session.wait_captured(60)
        assert bits(session, 300) == expected(300)
        assert session.report()["totals"]["quarantined"] == session.report()["totals"]["refused"] == 0


def test_strict_refuses_what_would_have_to_be_built() -> None:
    with open_session(plan(target(), high=64), device="cuda", strict=True) as session:
        assert bits(session, 40) == expected(40)
        with pytest.raises(RunError, match=rf"for {target()} not built ahead of time \(unplanned rows\)"):
            answered(session, prompt(300, VOCABULARY), 1)
    with pytest.raises(RunError, match=f"expected a plan with code for {target()}"):
        open_session(plan(OTHER), device="cuda", strict=True)


@pytest.mark.parametrize("length", [1, 3, 17, 64, 129, 300, 512, 700])
def test_portable_code_serves_on_this_card(length: int) -> None:
    with open_session(plan(target()), device=target()) as own:
        wanted = answered(own, prompt(length, VOCABULARY), 6)
    with open_session(plan(target()), device="compute_80") as session:
        assert session.report()["target"] == "compute_80"
        found = answered(session, prompt(length, VOCABULARY), 6)
        assert largest_difference(found, wanted) < 0.05
        plainly = bits(session, length)
        assert session.wait_captured(60)
        assert bits(session, length) == plainly
        totals = session.report()["totals"]
        assert (totals["quarantined"], totals["refused"]) == (0, 0)
        assert totals["promoted"] > 0


def test_a_chip_outside_the_plan_is_served_at_once_and_better_once_its_kernels_are_built() -> None:
    opened = time.perf_counter()
    with open_session(plan(OTHER), device="cuda") as session:
        first = answered(session, prompt(40, VOCABULARY), 4)
        served = time.perf_counter() - opened
        assert session.report()["target"] == "compute_80"
        held = session.report()["memory"]
        times: list[float] = []
        while not session.wait_built(0):
            began = time.perf_counter()
            answered(session, prompt(40, VOCABULARY), 16)
            times.append(time.perf_counter() - began)
        took = time.perf_counter() - opened
        report = session.report()
        assert report["code"]["just_in_time"]["failures"] == []
        assert (report["target"], report["code"]["swaps"]) == (target(), [f"compute_80 gave way to {target()}"])
        assert report["worker"]["renewed"] > 0
        assert largest_difference(answered(session, prompt(40, VOCABULARY), 4), first) < 0.05
        after = bits(session, 40)
        assert session.wait_captured(60)
        assert bits(session, 40) == after
        totals = session.report()["totals"]
        assert (totals["quarantined"], totals["refused"]) == (0, 0)
        now = session.report()["memory"]
        print(
            f"\nfirst answer {served:.2f} s after opening, swapped after {took:.1f} s; {len(times)} answers meanwhile: "
            f"p50 {1000 * np.percentile(times, 50):.2f} ms, p99 {1000 * np.percentile(times, 99):.2f}, "
            f"max {1000 * max(times):.2f}; free device bytes {held['free']} then, {now['free']} now"
        )


def test_without_portable_code_all_is_built_before_the_first_request() -> None:
    told: list[str] = []
    with open_session(plan(OTHER, portable=False), device="cuda", progress=told.append) as session:
        assert session.report()["target"] == target()
        assert told
        assert told[0].endswith("kernels (unknown chip)")
        answered(session, prompt(40, VOCABULARY), 4)
        assert session.report()["code"]["just_in_time"]["reasons"] == {"unknown chip": len(told)}


def test_closing_while_kernels_are_built_takes_no_longer_than_a_moment() -> None:
    session = open_session(plan(OTHER), device="cuda")
    answered(session, prompt(10, VOCABULARY), 2)
    began = time.perf_counter()
    session.close()
    assert time.perf_counter() - began < 5
    assert session.report()["code"]["just_in_time"]["state"] == "closed"
