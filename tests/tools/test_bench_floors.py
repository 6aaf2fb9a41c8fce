"""Do the floors of a plan count what a step must do, and nothing twice?"""

from __future__ import annotations

import math

import msgspec
import pytest

from hjgc.plan_format.structs import Plan
from hjgc.tools.benching.floors import Limits, cached, decode_floor, prompt_floor, work
from tests.plans import HEAD_SIZE, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, VOCABULARY, small_plan

PRODUCTS = LAYERS * ((HEADS + 2 * KV_HEADS) * HEAD_SIZE * HIDDEN + HIDDEN * HEADS * HEAD_SIZE + 3 * INNER * HIDDEN)
NORMS = (2 * LAYERS + 1) * HIDDEN
HEAD = VOCABULARY * HIDDEN
SLOW_READ = Limits(read=1e3, copy=1e3, link=1e3, matrix=1e12)
SLOW_MATRIX = Limits(read=1e12, copy=1e12, link=1e12, matrix=1e3)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


@pytest.mark.parametrize(("phase", "tokens"), [("decode", 1), ("prefill", 1), ("prefill", 7), ("prefill", 40)])
def test_every_weight_is_read_once_and_the_embedding_by_the_rows_used(plan: Plan, phase: str, tokens: int):
    assert work(plan, phase, tokens).weight_bytes == 4 * (PRODUCTS + NORMS + HEAD + tokens * HIDDEN)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_every_row_is_multiplied_and_the_head_by_the_last_one(plan: Plan, tokens: int):
    assert work(plan, "prefill", tokens).flops == 2 * (tokens * PRODUCTS + HEAD)


def test_a_weight_that_two_launches_may_read_is_counted_once(plan: Plan):
    phase = plan.phase("decode")
    number = next(i for i, launch in enumerate(phase.launches) if launch.op == "linear")
    schedules = tuple(
        msgspec.structs.replace(
            schedule,
            segments=tuple(
                msgspec.structs.replace(segment, launches=(*segment.launches, number)) for segment in schedule.segments
            ),
        )
        for schedule in phase.schedules
    )
    twice = msgspec.structs.replace(
        plan, phases=(plan.phase("prefill"), msgspec.structs.replace(phase, schedules=schedules))
    )
    assert work(twice, "decode", 1) == work(plan, "decode", 1)


def test_the_floor_of_a_prompt_is_the_longer_of_reading_and_multiplying(plan: Plan):
    needed = work(plan, "prefill", 16)
    assert prompt_floor(plan, SLOW_READ, 16) == pytest.approx(needed.weight_bytes / 1e3)
    assert prompt_floor(plan, SLOW_MATRIX, 16) == pytest.approx(needed.flops / 1e3)


def test_without_a_matrix_rate_the_floor_of_a_prompt_is_reading(plan: Plan):
    unknown = Limits(read=1e12, copy=1e12, link=1e12, matrix=None)
    assert prompt_floor(plan, unknown, 16) == pytest.approx(work(plan, "prefill", 16).weight_bytes / 1e12)


def test_the_floor_of_decoding_grows_by_the_rows_that_are_cached(plan: Plan):
    row = 2 * LAYERS * KV_HEADS * HEAD_SIZE * 4
    grown = decode_floor(plan, SLOW_READ, 20) - decode_floor(plan, SLOW_READ, 10)
    assert math.isclose(grown, 10 * row / 1e3)


def test_the_cache_holds_half_the_answer_more_on_average():
    assert cached(16, 1) == 16 and cached(16, 65) == 48
