"""Is a predicted time what bytes, operations and launches say, and is it left out where nothing is known?"""

from __future__ import annotations

from pathlib import Path

import pytest

from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import Buffer, Kernel, Launch, Operand, TemplateCall, Variant
from hjgc.tools.costs import Cost, launch_cost
from hjgc.tools.prediction import (
    CHIPS,
    launch_seconds,
    prediction,
    prompt_seconds,
    representative,
    step_seconds,
    token_seconds,
)
from tests.plans import small_plan
from tests.runtime.gpu_plan import gpu_plan
from tests.tools.plans_to_compare import replace

H200 = CHIPS["sm_90"]


@pytest.mark.parametrize(
    ("cost", "microseconds"),
    [
        (Cost(flops=0, bytes=0), 1.6),
        (Cost(flops=0, bytes=4_574_000), 1.0 + 1.6),
        (Cost(flops=790_000_000, bytes=0), 1.0 + 1.6),
        (Cost(flops=790_000_000, bytes=3 * 4_574_000), 3.0 + 0.6 + 1.6),
        (Cost(flops=2 * 790_000_000, bytes=4_574_000), 2.0 + 0.6 + 1.6),
    ],
)
def test_a_launch_takes_the_longer_of_reading_and_multiplying_part_of_the_shorter_and_its_fixed_time(
    cost: Cost, microseconds: float
) -> None:
    assert launch_seconds(cost, H200) == pytest.approx(microseconds * 1e-6)


def test_a_step_is_the_sum_of_the_launches_of_its_default_schedule(tmp_path: Path) -> None:
    plan = gpu_plan(tmp_path)
    decode = plan.phase("decode")
    (segment,) = decode.schedules[0].segments
    fixed = len(segment.launches) * H200.launch
    seconds = step_seconds(plan, decode, H200, tokens=1, start=0)
    assert fixed < seconds < 1.01 * fixed
    assert token_seconds(plan, H200, 0) == seconds
    assert prompt_seconds(plan, H200, 16) > prompt_seconds(plan, H200, 1)


def test_a_function_of_the_callers_counts_as_nothing() -> None:
    plain, cut = small_plan(), small_plan(function="steer")
    assert prompt_seconds(plain, H200, 4) == pytest.approx(prompt_seconds(cut, H200, 4))


def test_the_chip_is_that_of_the_first_target_that_is_known(tmp_path: Path) -> None:
    found = prediction(gpu_plan(tmp_path, ("compute_80", "sm_90")))
    assert (found.target, found.chip) == ("sm_90", H200)


def test_where_no_chip_is_known_it_says_so() -> None:
    found = prediction(small_plan())
    assert (found.chip, found.why_not) == (None, "speeds are known of sm_90 (H200), the plan is for cpu")


def test_costs_are_given_for_a_prompt_of_128_or_fewer_and_a_token_after_512_or_fewer() -> None:
    assert [representative(phase) for phase in small_plan().phases] == [(16, 0), (1, 48)]
    large = small_plan(buckets=(1, 3, 7, 15, 31, 63, 127, 200), context=1000)
    assert [representative(phase) for phase in large.phases] == [(128, 0), (1, 512)]


@pytest.mark.parametrize(("target", "parts"), [("compute_80", 4), ("sm_90", 2), ("", 4)])
def test_a_sum_has_as_many_parts_as_the_targets_kernel_makes(target: str, parts: int) -> None:
    """A join of rows of 3 in a buffer with room for 6 parts reads as many of each row as there are."""
    made = (("compute_80", 4), ("sm_90", 2))
    variants = tuple(Variant(0, chip, {"splits": splits}, ()) for chip, splits in made)
    plan = replace(small_plan(), variants=variants, targets=tuple(chip for chip, _ in made))
    prefill = plan.phase("prefill")
    tokens = prefill.buffers[0].shape[0]
    rows = Buffer("y", "float16", (tokens, 3), 576, 48, 0, 0)
    phase = replace(prefill, buffers=(Buffer("parts", "float32", (6, 8, 3), 0, 576, 0, 0), rows))
    operands = (Operand("parts", "buffer", 0, "read"), Operand("y", "buffer", 1, "write"))
    kernels: dict[str, Kernel] = {chip: TemplateCall(i, (1, 1, 1), ()) for i, (chip, _) in enumerate(made)}
    cost = launch_cost(plan, phase, Launch("join", "join", operands, kernels), tokens=2, start=0, target=target)
    assert cost.flops == all_ops()["join"].flops({"S": parts, "M": 2, "N": 3, "R": 8, "start": 0})
