"""Which network does a Hugging Face `config.json` describe, in the few numbers that we trace by?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import InputError

MISTRAL_WINDOW = 4096  # what transformers takes when a Mistral config.json has no sliding_window
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretch of the low rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of one LLaMA-family decoder. Sizes count elements, not bytes."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    window: int = 0
    """Keys that a query sees, itself among them; 0 for all."""


def read_config(folder: Path) -> DecoderConfig:
    """Read `folder/config.json`. Raises InputError for a file that is missing, unreadable or of another family."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, "expected a Hugging Face model folder with config.json, found none") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, f"expected a JSON file, found {error}") from None
    if not isinstance(raw, dict):
        raise InputError(path, f"expected a JSON object, found {type(raw).__name__}")
    return parse_config(raw, path)


def parse_config(raw: dict[str, Any], path: Path) -> DecoderConfig:
    """Build the config from a parsed `config.json`; `path` is only for messages."""
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED:
        raise InputError(
            path,
            f"expected one of {', '.join(SUPPORTED)}, found {model_type!r}",
            field="model_type",
            next_step="export the model with its own exporter, then run `hjgc compile model.onnx`",
        )
    _refuse_unsupported(raw, path)
    heads = _integer(raw, "num_attention_heads", path)
    hidden = _integer(raw, "hidden_size", path)
    kv_heads = _integer(raw, "num_key_value_heads", path, heads)
    if heads % kv_heads:
        raise InputError(path, f"expected a divisor of {heads}, found {kv_heads}", field="num_key_value_heads")
    head_dim = _integer(raw, "head_dim", path, 128 if model_type == "qwen3" else hidden // heads)
    if head_dim % 2:
        raise InputError(path, f"expected an even number, for rotary pairs, found {head_dim}", field="head_dim")
    rope = _rope(raw, path)
    bias = bool(raw.get("attention_bias", False)) and model_type in ("llama", "qwen3")
    return DecoderConfig(
        model_type=model_type,
        vocab_size=_integer(raw, "vocab_size", path),
        hidden_size=hidden,
        intermediate_size=_integer(raw, "intermediate_size", path),
        layers=_integer(raw, "num_hidden_layers", path),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=_integer(raw, "max_position_embeddings", path, 2048),
        norm_epsilon=_number(raw, "rms_norm_eps", path, 1e-6),
        rope_theta=_number(raw | rope, "rope_theta", path, 10000.0),
        rope_scaling=_rope_scaling(rope, path),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias or model_type == "qwen2",
        output_bias=bias,
        mlp_bias=bool(raw.get("mlp_bias", False)) and model_type == "llama",
        qk_norm=model_type == "qwen3",
        window=_window(raw, path),
    )


def _refuse_unsupported(raw: dict[str, Any], path: Path) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(path, f"expected 'silu', found {raw['hidden_act']!r}", field="hidden_act")


def _window(raw: dict[str, Any], path: Path) -> int:
    """Mistral's window, which all layers have; 0 where no key ever leaves it. Qwen's differs from layer to layer."""
    is_mistral = raw["model_type"] == "mistral"
    found = raw.get("sliding_window", MISTRAL_WINDOW if is_mistral else None)
    if found is None or not raw.get("use_sliding_window", is_mistral):
        return 0
    window = _integer({"sliding_window": found}, "sliding_window", path)
    if window >= _integer(raw, "max_position_embeddings", path, 2048):
        return 0
    if not is_mistral:
        raise InputError(
            path,
            f"expected no window in some layers alone, or one of at least max_position_embeddings, found {window}",
            field="sliding_window",
            next_step="set use_sliding_window to false if prompts and answers stay shorter than it",
        )
    return window


def inverse_frequencies(config: DecoderConfig) -> NDArray[np.float32]:
    """Rotary frequencies [D/2] float32: theta^(-2i/D) (Su et al., 2021), low ones stretched as Llama 3 does:
    wavelengths above original_context/low_factor are divided by `factor`, those below original_context/high_factor
    are kept, and those between are blended linearly in 1/wavelength."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    wavelength = 2 * math.pi / plain
    smooth = (scaling.original_context / wavelength - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    smooth = smooth.clip(0.0, 1.0)
    return ((1 - smooth) * plain / scaling.factor + smooth * plain).astype(np.float32)


def _integer(raw: dict[str, Any], name: str, path: Path, default: int | None = None) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(path, f"expected a positive integer, found {value!r}", field=name)
    return value


def _number(raw: dict[str, Any], name: str, path: Path, default: float | None = None) -> float:
    value = raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(path, f"expected a positive number, found {value!r}", field=name)
    return float(value)


def _rope(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rotary settings: `rope_parameters` as transformers 5 writes them, `rope_scaling` before that."""
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(name) or {}
    if not isinstance(rope, dict):
        raise InputError(path, f"expected an object, found {rope!r}", field=name)
    return cast(dict[str, Any], rope)


def _rope_scaling(rope: dict[str, Any], path: Path) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(path, f"expected 'default' or 'llama3', found {kind!r}", field="rope_scaling.rope_type")
    low, high = _number(rope, "low_freq_factor", path), _number(rope, "high_freq_factor", path)
    if low >= high:
        raise InputError(path, f"expected more than low_freq_factor ({low}), found {high}", field="high_freq_factor")
    return RopeScaling(
        factor=_number(rope, "factor", path),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_context=_integer(rope, "original_max_position_embeddings", path),
    )
