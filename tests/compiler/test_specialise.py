"""Which prompt lengths get graphs, and are the others served all the same?"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from hjgc.compiler import compile_model
from hjgc.compiler.kernels.prefill_choice import range_ends
from hjgc.compiler.specialise import choose_buckets, device_buckets
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.opening import open_session
from tests.compiler.exports import copy_of, exported

RANGES = [
    *((low, high) for high in range(1, 70) for low in range(1, high + 1)),
    (1, 511), (1, 512), (1, 513), (10, 500), (500, 512), (512, 512), (7, 4096), (4095, 4096), (1000, 131072),
]  # fmt: skip


def test_buckets_rise_end_at_the_longest_prompt_and_start_no_lower_than_the_shortest() -> None:
    for low, high in RANGES:
        buckets = choose_buckets(low, high)
        assert list(buckets) == sorted(set(buckets)), (low, high)
        assert buckets[-1] == high, (low, high)
        assert buckets[0] >= low, (low, high)


def test_no_prompt_in_the_range_leaves_half_of_its_graph_empty_and_only_one_of_two_a_third() -> None:
    for low, high in RANGES:
        buckets = choose_buckets(low, high)
        for length in {low, low + 1, (low + high) // 2, high - 1, high, *range(low, min(high, low + 600) + 1)}:
            if low <= length <= high:
                bucket = next(bucket for bucket in buckets if bucket >= length)
                assert bucket <= 2 * length, (low, high, length)
                assert 3 * (bucket - length) < bucket, (low, high, length)


@pytest.mark.parametrize(
    ("low", "high", "buckets"),
    [
        (1, 1, (1,)),
        (1, 2, (1, 2)),
        (1, 16, (1, 2, 3, 4, 6, 8, 12, 16)),
        (10, 500, (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 500)),
        (500, 512, (512,)),
    ],
)
def test_the_buckets_of(low: int, high: int, buckets: tuple[int, ...]) -> None:
    assert choose_buckets(low, high) == buckets


@pytest.mark.parametrize("targets", [("sm_90",), ("sm_80",), ("compute_80",), ("sm_80", "sm_90", "compute_80")])
def test_buckets_on_a_gpu_hold_the_end_of_each_range_and_leave_none_over_half_empty(targets: tuple[str, ...]) -> None:
    for high in (1, 2, 7, 8, 17, 100, 511, 512, 513, 1026, 1027, 2048, 4096, 65536):
        buckets = device_buckets(targets, high)
        ends = {end for target in targets for end in range_ends(target, high)}
        assert ends <= set(buckets) and buckets[0] == 1 and buckets[-1] == high, (targets, high)
        assert all(a < b <= 2 * (a + 1) for a, b in pairwise(buckets)), (targets, high)


def compiled(prompt: tuple[int, int], context: int | None) -> Plan:
    with TemporaryDirectory() as folder:
        output = Path(folder) / "plan.hjg"
        return compile_model(exported("gqa") / "model.onnx", output, prompt=prompt, context=context).plan


def test_the_sizes_of_a_plan_start_at_one_token_whatever_the_shortest_prompt() -> None:
    sizes = {size.name: (size.low, size.high) for size in compiled((10, 48), 64).phase("prefill").sizes}
    assert sizes == {"tokens": (1, 48), "length": (1, 48), "start": (0, 64)}


def test_without_a_context_the_models_own_counts_and_prompts_are_cut_to_it() -> None:
    plan = compiled((1, 4000), None)
    assert plan.model.context == 1024
    assert {size.name: size.high for size in plan.phase("prefill").sizes} == {
        "tokens": 1024,
        "length": 1024,
        "start": 1024,
    }


def test_a_context_beyond_the_models_own_is_refused_with_both_figures() -> None:
    with pytest.raises(InputError, match=r"--context: expected at most the model's 1024 tokens, found 1025"):
        compiled((1, 16), 1025)


@cache
def answers(low: int) -> dict[int, bytes]:
    """Logits after prompts of several lengths, from a plan whose graphs start at `low` tokens."""
    with TemporaryDirectory() as folder:
        model = copy_of("gqa", Path(folder) / "model")
        plan = compile_model(model, model.with_name("plan.hjg"), prompt=(low, 24), context=64).path
        with open_session(plan) as session:
            return {length: logits(session, length) for length in (1, 2, 9, 10, 11, 24, 40)}


def logits(session: object, length: int) -> bytes:
    ids = np.random.default_rng(length).integers(3, 199, length).tolist()
    with session.request(logits=True) as request:  # type: ignore[attr-defined]
        request.prefill(ids, {})
        return request.logits().tobytes()


def test_prompts_shorter_than_the_shortest_are_served_with_the_same_bits() -> None:
    assert answers(10) == answers(1)
