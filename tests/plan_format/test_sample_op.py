"""Does the sampler draw from the distribution that its parameters describe, and always the same for the same key?"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hjgc.plan_format.ops.sample import choose, keep, penalise, philox, philox_uniform, reference

ONES = 0xFFFFFFFF
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed_low": 1234,
    "seed_high": 56,
}


def parameters(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**NEUTRAL | changes)


def random_logits(seed: int, size: int = 500) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that are published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: Any, key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


def test_a_uniform_number_is_the_first_word_scaled_into_the_open_interval() -> None:
    ids = np.array([0, 7, 49_999])
    words = [int(philox((i, 12, 0, 0), (3, 4))[0]) for i in ids.tolist()]
    assert philox_uniform(ids, 12, 3, 4).tolist() == [(word + 0.5) / 2**32 for word in words]


def test_no_word_gives_a_uniform_number_of_zero_or_one() -> None:
    numbers = philox_uniform(np.arange(100_000), 5, ONES, ONES)
    assert numbers.min() > 0.0 and numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 5 * math.sqrt(1 / 12 / len(numbers))


def draws(logits: np.ndarray, count: int, **changes: Any) -> np.ndarray:
    """How often each token is chosen over `count` positions."""
    chosen = [choose(logits, np.empty(0, np.int32), parameters(**changes), position=p) for p in range(count)]
    return np.bincount(chosen, minlength=len(logits))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "seed_low": 0, "seed_high": 0},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.9, "min_p": 0.15},
    ],
)
def test_tokens_come_as_often_as_the_softmax_of_what_is_kept_says(changes: dict[str, Any]) -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0, 1.5, 0.5, -3.0, 2.5], np.float32)
    count = 4_000
    scores = logits.astype(np.float64) / changes.get("temperature", 1.0)
    kept = keep(scores, changes.get("top_k", 0), changes.get("top_p", 1.0), changes.get("min_p", 0.0))
    weights = np.exp(scores[kept])
    expected = count * weights / weights.sum()
    found = draws(logits, count, **changes)
    assert found.sum() == found[kept].sum() == count
    chi_square = float(((found[kept] - expected) ** 2 / expected).sum())
    # Mean n - 1, variance 2 (n - 1): five standard deviations over the mean, for draws that are fixed by their key.
    freedom = len(kept) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_one_seed_and_position_give_one_token_and_others_give_others() -> None:
    logits = np.zeros(1000, np.float32)
    history = np.empty(0, np.int32)
    token = choose(logits, history, parameters(), position=9)
    assert choose(logits.copy(), history, parameters(), position=9) == token
    others = [
        choose(logits, history, parameters(), position=10),
        choose(logits, history, parameters(seed_low=1235), position=9),
        choose(logits, history, parameters(seed_high=57), position=9),
    ]
    assert token not in others and len(set(others)) == 3


def test_a_token_keeps_its_luck_whatever_else_is_kept() -> None:
    """Noise belongs to the token id, not to its rank: what wins among all wins among fewer."""
    logits = random_logits(1)
    history = np.empty(0, np.int32)
    for position in range(50):
        token = choose(logits, history, parameters(), position=position)
        rank = int((logits > logits[token]).sum()) + 1
        assert choose(logits, history, parameters(top_k=rank), position=position) == token


def warped(warper: Any, scores: np.ndarray, history: np.ndarray | None = None) -> np.ndarray:
    ids = torch.tensor([[] if history is None else history.tolist()], dtype=torch.long)
    return warper(ids, torch.from_numpy(scores)[None]).squeeze(0).numpy()


@pytest.mark.parametrize("top_k", [1, 2, 5, 50, 499, 500, 600])
def test_top_k_keeps_what_transformers_keeps(top_k: int) -> None:
    for seed in range(5):
        scores = random_logits(seed).astype(np.float64)
        expected = np.flatnonzero(np.isfinite(warped(TopKLogitsWarper(top_k), scores)))
        assert keep(scores, top_k, 1.0, 0.0).tolist() == expected.tolist()


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    scores = np.array([1.0, 3.0, 2.0, 2.0, 2.0])
    expected = np.flatnonzero(np.isfinite(warped(TopKLogitsWarper(2), scores)))
    assert keep(scores, 2, 1.0, 0.0).tolist() == expected.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p: float) -> None:
    for seed in range(5):
        scores = random_logits(seed).astype(np.float64)
        expected = np.flatnonzero(np.isfinite(warped(TopPLogitsWarper(top_p), scores)))
        assert keep(scores, 0, top_p, 0.0).tolist() == expected.tolist()


@pytest.mark.parametrize("min_p", [1e-6, 0.01, 0.1, 0.5, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float) -> None:
    for seed in range(5):
        scores = random_logits(seed).astype(np.float64)
        expected = np.flatnonzero(np.isfinite(warped(MinPLogitsWarper(min_p), scores)))
        assert keep(scores, 0, 1.0, min_p).tolist() == expected.tolist()


def test_the_filters_work_on_what_the_filter_before_them_left() -> None:
    for seed in range(10):
        scores = random_logits(seed).astype(np.float64)
        left = warped(TopKLogitsWarper(40), scores)
        left = warped(TopPLogitsWarper(0.8), left)
        left = warped(MinPLogitsWarper(0.2), left)
        assert keep(scores, 40, 0.8, 0.2).tolist() == np.flatnonzero(np.isfinite(left)).tolist()


@pytest.mark.parametrize("penalty", [0.5, 1.1, 1.5, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    scores = random_logits(3).astype(np.float64)
    history = np.array([4, 4, 9, 400, 9, 12], np.int32)
    expected = warped(RepetitionPenaltyLogitsProcessor(penalty), scores.copy(), history)
    np.testing.assert_array_equal(penalise(scores.copy(), history, penalty), expected)
    assert (expected != scores).sum() == 4


def test_tokens_that_the_caller_forbids_are_never_chosen() -> None:
    logits = random_logits(4, 20)
    logits[[i for i in range(20) if i not in (3, 11)]] = -np.inf
    for changes in (
        {},
        {"top_p": 0.99},
        {"min_p": 0.01},
        {"top_k": 5},
        {"repetition_penalty": 1.3},
        {"temperature": 9.0},
    ):
        found = draws(logits, 60, **changes)
        assert set(np.flatnonzero(found)) <= {3, 11}


def run_reference(logits: torch.Tensor, history: list[int], **changes: Any) -> tuple[list[int], SimpleNamespace]:
    """One call of the op on a history of `start` and `length` tokens; the history after it, and the block."""
    block = parameters(**{"start": len(history) - 2, "length": 2} | changes)
    kept = torch.tensor([*history, -1, -1], dtype=torch.int32)
    sampled = torch.tensor([-1], dtype=torch.int32)
    before = logits.clone()
    reference(logits, kept, block, sampled)
    assert torch.equal(logits, before)
    assert int(sampled[0]) == int(kept[len(history)])
    return kept.tolist(), block


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_appends_its_token_and_moves_the_parameter_block_on(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(random_logits(5))[None].to(dtype)
    history, block = run_reference(logits, [5, 6, 7], temperature=0.0)
    assert history == [5, 6, 7, int(logits[0].float().argmax()), -1]
    assert (block.start, block.length) == (3, 1)


def test_the_best_token_wins_when_greedy_and_of_equals_the_lower_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    for changes in ({"top_k": 3, "top_p": 0.1, "min_p": 0.9}, {"seed_low": 7}):
        assert run_reference(logits, [0, 0], temperature=0.0, **changes)[0][2] == 1


def test_the_penalty_counts_the_whole_history_and_nothing_after_it() -> None:
    logits = torch.tensor([[-1.0, 2.0, 1.5, 1.8]])
    assert run_reference(logits, [0, 0, 0], temperature=0.0, repetition_penalty=2.0)[0][3] == 1
    assert run_reference(logits, [1, 0, 0], temperature=0.0, repetition_penalty=2.0)[0][3] == 3
    assert run_reference(logits, [1, 3, 0], temperature=0.0, repetition_penalty=2.0)[0][3] == 2


def test_a_step_may_be_repeated_and_gives_the_same_token() -> None:
    logits = torch.from_numpy(random_logits(6))[None]
    runs = [run_reference(logits, [1, 2, 3, 4], temperature=1.3, top_p=0.9)[0] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert (
        choose(logits[0].numpy(), np.array([1, 2, 3, 4]), parameters(temperature=1.3, top_p=0.9), position=4)
        == runs[0][4]
    )
