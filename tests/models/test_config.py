"""Does `read_config` understand the config.json of each family, and say what is wrong with the others?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hjgc.models.config import parse_config, read_config
from hjgc.plan_format.errors import InputError
from tests.models.checkpoints import LLAMA3_ROPE, TINY, VARIANTS

PLACE = Path("config.json")


def parsed(**overrides: Any) -> Any:
    return parse_config(TINY | overrides, PLACE)


def without(*names: str, **overrides: Any) -> dict[str, Any]:
    return {name: value for name, value in (TINY | overrides).items() if name not in names}


@pytest.mark.parametrize(
    ("model_type", "attention_bias", "qkv_bias", "output_bias", "qk_norm"),
    [
        ("llama", False, False, False, False),
        ("llama", True, True, True, False),
        ("mistral", True, False, False, False),
        ("qwen2", False, True, False, False),
        ("qwen2", True, True, False, False),
        ("qwen3", False, False, False, True),
        ("qwen3", True, True, True, True),
    ],
)
def test_each_family_has_the_biases_and_norms_that_transformers_gives_it(
    model_type: str, attention_bias: bool, qkv_bias: bool, output_bias: bool, qk_norm: bool
) -> None:
    config = parsed(model_type=model_type, attention_bias=attention_bias, sliding_window=None)
    assert (config.qkv_bias, config.output_bias, config.qk_norm) == (qkv_bias, output_bias, qk_norm)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_is_read_in_the_old_and_in_the_new_spelling(name: str) -> None:
    scaling = parsed(**{name: LLAMA3_ROPE}).rope_scaling
    assert (scaling.factor, scaling.low_frequency_factor, scaling.high_frequency_factor) == (8.0, 1.0, 4.0)
    assert scaling.original_context == 256


def test_the_base_of_the_rotary_frequencies_is_found_inside_rope_parameters() -> None:
    raw = without("rope_theta", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert parse_config(raw, PLACE).rope_theta == 5e5


def test_what_old_configs_leave_out_is_filled_in() -> None:
    config = parse_config(without("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"), PLACE)
    assert (config.kv_heads, config.head_dim, config.rope_theta, config.norm_epsilon) == (4, 16, 10000.0, 1e-6)


def test_a_window_as_wide_as_the_context_is_no_window() -> None:
    assert parsed(model_type="mistral", sliding_window=1024).window == 0
    assert parsed(model_type="mistral", sliding_window=512).window == 512
    assert parsed(model_type="mistral", max_position_embeddings=8192).window == 4096


def test_a_window_that_is_switched_off_is_no_window() -> None:
    assert parsed(**VARIANTS["bias"], sliding_window=16, use_sliding_window=False).context == 1024


@pytest.mark.parametrize(
    ("overrides", "field", "words"),
    [
        ({"model_type": "gpt2"}, "model_type", "found 'gpt2'"),
        ({"model_type": ["llama"]}, "model_type", "found ['llama']"),
        ({"hidden_size": None}, "hidden_size", "positive integer"),
        ({"hidden_size": 64.0}, "hidden_size", "found 64.0"),
        ({"vocab_size": True}, "vocab_size", "found True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers", "found 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads", "a divisor of 4"),
        ({"head_dim": 15}, "head_dim", "an even number"),
        ({"head_dim": "16"}, "head_dim", "found '16'"),
        ({"hidden_act": "gelu"}, "hidden_act", "expected 'silu'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps", "a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps", "a positive number"),
        ({"rope_theta": -1.0}, "rope_theta", "found -1.0"),
        ({"rope_scaling": "linear"}, "rope_scaling", "an object"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type", "found 'linear'"),
        ({"rope_scaling": LLAMA3_ROPE | {"factor": None}}, "factor", "found None"),
        ({"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor", "more than low_freq_factor"),
        (VARIANTS["bias"] | {"sliding_window": 512, "use_sliding_window": True}, "sliding_window", "found 512"),
        ({"model_type": "mistral", "sliding_window": "wide"}, "sliding_window", "found 'wide'"),
    ],
)
def test_a_value_that_cannot_be_is_named(overrides: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(**overrides)
    assert caught.value.field == field
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a JSON file"),
        (b"{", "expected a JSON file"),
        (b"\xff\xfe", "expected a JSON file"),
        (b"[" * 100_000, "expected a JSON file"),
        (json.dumps([1]).encode(), "expected a JSON object, found list"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_config(tmp_path)
    assert caught.value.place == str(tmp_path / "config.json")


@pytest.mark.parametrize("folder", ["", "no/such/folder", "a_file"])
def test_a_folder_without_config_json_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a_file").write_text("not a folder")
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path / folder)
