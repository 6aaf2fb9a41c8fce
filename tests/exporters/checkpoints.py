"""Which small random networks do the exporters export? One for each architecture, the same in both environments."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import LlamaConfig as Llama
from transformers import MistralConfig as Mistral
from transformers import Qwen2Config as Qwen2
from transformers import Qwen3Config as Qwen3

MAJOR = int(transformers.__version__.split(".")[0])
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = 160
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FEW_HEADS = {"num_key_value_heads": 2, "intermediate_size": 96}
WIDE = {"intermediate_size": 172}  # no multiple of the blocks that weights are quantised in


def _rotation(theta: float, **scaling: Any) -> dict[str, Any]:
    """As this version of transformers spells it."""
    if MAJOR >= 5:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}
    return {"rope_theta": theta, "rope_scaling": scaling or None}


CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "llama2": lambda: Llama(**BASE | WIDE, rms_norm_eps=1e-5, **_rotation(1e4)),
    "llama3": lambda: Llama(
        **BASE | FEW_HEADS | {"tie_word_embeddings": True}, rms_norm_eps=1e-5, **_rotation(5e5, **LLAMA3)
    ),
    "mistral": lambda: Mistral(**BASE | FEW_HEADS, rms_norm_eps=1e-5, sliding_window=32, **_rotation(1e4)),
    "qwen2": lambda: Qwen2(**BASE | FEW_HEADS, rms_norm_eps=1e-6, **_rotation(1e6)),
    "qwen3": lambda: Qwen3(
        **BASE | FEW_HEADS | WIDE | {"tie_word_embeddings": True}, head_dim=32, rms_norm_eps=1e-6, **_rotation(1e6)
    ),
}


def write_checkpoint(architecture: str, folder: Path) -> None:
    """Weights, configuration and a tokenizer, which builders copy."""
    model = AutoModelForCausalLM.from_config(CONFIGURATIONS[architecture](), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_numbers(name, parameter.shape))
    model.save_pretrained(folder)
    _write_tokenizer(folder)


def _numbers(name: str, shape: torch.Size) -> torch.Tensor:
    """By the parameter's name, so that both versions of transformers hold the same ones."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) == 1:
        return 1 + 0.2 * drawn if "norm" in name else 0.3 * drawn
    return 0.5 * drawn if "embed" in name else drawn / shape[-1] ** 0.5


def _write_tokenizer(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - len(SPECIAL)]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=256,
    ).save_pretrained(folder)  # fmt: skip


def load(checkpoint: Path, dtype: str = "float32", attention: str = "sdpa") -> Any:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype), attn_implementation=attention)
    return model.eval()
