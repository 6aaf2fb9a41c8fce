"""Do sampling parameters say what is wrong with them, and become the numbers that a plan's sampler reads?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import parameter_block
from hjgc.runtime.request import SAMPLING
from hjgc.runtime.sampling_params import SamplingParams, from_generation


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -1.0, "0 (greedy) or a number"),
        ("temperature", 1e-9, "from 0.001"),
        ("temperature", math.nan, "a number"),
        ("temperature", math.inf, "to 1000"),
        ("temperature", "hot", "a number"),
        ("temperature", True, "a number"),
        ("temperature", None, "a number"),
        ("top_k", -1, "0 (all) or a positive integer"),
        ("top_k", 1.5, "a positive integer"),
        ("top_k", 2**31, "a positive integer"),
        ("top_p", 0.0, "over 0 and up to 1"),
        ("top_p", 1.01, "over 0 and up to 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 1.1, "from 0 to 1"),
        ("repetition_penalty", 0, "a number from 0.001"),
        ("seed", -1, "0 to 2^64 - 1"),
        ("seed", 2**64, "0 to 2^64 - 1"),
        ("seed", 0.5, "integer"),
        ("max_tokens", 0, "None or a positive integer"),
        ("max_tokens", False, "None or a positive integer"),
        ("stop", "", "at least one character"),
        ("stop", ["a", ""], "at least one character"),
        ("stop", ["a", 7], "strings"),
        ("stop", 7, "a list"),
        ("stop_token_ids", [-1], "token ids, 0 or more"),
        ("stop_token_ids", ["2"], "token ids"),
        ("stop_token_ids", 2, "a list"),
        ("ignore_eos", "yes", "True or False"),
        ("logits_processor", 3, "None or a function"),
    ],
)
def test_a_wrong_value_is_refused_by_field_with_what_was_expected_and_found(
    field: str, value: Any, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
    assert expected in str(caught.value)
    found = value[-1] if isinstance(value, list) else value
    assert repr(found) in str(caught.value).split("found")[1]


@pytest.mark.parametrize(
    "legal",
    [
        {"temperature": 0},
        {"temperature": np.float32(0.7), "top_k": np.int64(40)},
        {"top_p": 1e-6, "min_p": 1},
        {"seed": 2**64 - 1},
        {"max_tokens": None},
        {"stop": iter(["a", "b"]), "stop_token_ids": np.array([1, 2])},
    ],
)
def test_a_value_at_the_edge_or_of_numpy_is_accepted(legal: dict[str, Any]) -> None:
    SamplingParams(**legal)


def test_one_stop_string_and_a_list_of_it_mean_the_same() -> None:
    assert SamplingParams(stop="END") == SamplingParams(stop=["END"])
    assert SamplingParams(stop="END").stop_strings == ("END",)


def test_parameters_cannot_change_once_they_are_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = -1.0  # type: ignore[misc]


def test_the_values_are_the_sampling_fields_of_the_parameter_block() -> None:
    block = {field.name: field.dtype for field in parameter_block().fields}
    values = SamplingParams(seed=5, top_k=np.int64(3), temperature=np.float64(2)).values()  # type: ignore[arg-type]
    assert values.keys() == block.keys() - {"start", "length"} == SAMPLING.keys()
    for name, value in values.items():
        assert type(value) is (float if block[name] == "float32" else int)


def test_a_seed_is_cut_into_two_words() -> None:
    values = SamplingParams(seed=0x0123456789ABCDEF).values()
    assert (values["seed_low"], values["seed_high"]) == (0x89ABCDEF, 0x01234567)


def test_without_a_seed_each_request_draws_its_own() -> None:
    params = SamplingParams()
    seeds = {(params.values()["seed_low"], params.values()["seed_high"]) for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= word < 2**32 for seed in seeds for word in seed)


def test_a_models_own_defaults_become_parameters_and_the_rest_is_as_usual() -> None:
    params = from_generation({"temperature": 0.6, "top_k": 50.0, "top_p": 0.9, "max_length": 20.0})
    assert params == SamplingParams(temperature=0.6, top_k=50, top_p=0.9)


def test_a_model_without_defaults_is_greedy() -> None:
    assert from_generation({}) == SamplingParams(temperature=0.0)


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_k", 2.5), ("top_p", 7.0)])
def test_defaults_that_no_sampler_can_follow_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        from_generation({name: value})
