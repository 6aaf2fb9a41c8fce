"""How do tests get a small random checkpoint, laid out on disk as Hugging Face lays them out?"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# With heads of 16 and an original context of 256, Llama 3's rule keeps, blends and divides at least one frequency each.
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "bias": {"num_key_value_heads": 2, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qknorm": {"num_key_value_heads": 2, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "window": {
        "num_key_value_heads": 2,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 11,
    },
    "llama3rope": {"num_key_value_heads": 2, "rope_scaling": LLAMA3_ROPE},
}


def write_checkpoint(
    folder: Path,
    *,
    variant: str = "gqa",
    dtype: str = "float32",
    seed: int = 0,
    sharded: bool = False,
    **overrides: Any,
) -> Path:
    """Write config.json and safetensors (dtype float32, float16 or bfloat16) into `folder` and return it.
    `overrides` are entries of config.json, say `num_hidden_layers=1`. The same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TINY | VARIANTS[variant] | {"torch_dtype": dtype} | overrides
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _random(name, shape, generator).to(getattr(torch, dtype)) for name, shape in tensor_shapes(config).items()
    }
    if sharded:
        _save_shards(folder, tensors)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_sparse_checkpoint(folder: Path, *, dtype: str = "F16", **overrides: Any) -> Path:
    """A checkpoint of any size (dtype F32, F16 or BF16) whose data is a hole in the file: it takes no disk, and a
    program that stays small has not read it. For sizes and times only: its weights say nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TINY | overrides
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in tensor_shapes(config).items():
        begin, end = end, end + math.prod(shape) * (4 if dtype == "F32" else 2)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return folder


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint with this config.json holds."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()}
    return shapes


def _layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    if config["model_type"] == "qwen2" or config["attention_bias"]:
        shapes |= {f"self_attn.{x}_proj.bias": (size,) for x, size in (("q", q), ("k", kv), ("v", kv))}
    if config["attention_bias"]:
        shapes["self_attn.o_proj.bias"] = (hidden,)
    if config["mlp_bias"]:
        shapes |= {f"mlp.{x}_proj.bias": (size,) for x, size in (("gate", ffn), ("up", ffn), ("down", hidden))}
    if config["model_type"] == "qwen3":
        shapes |= {f"self_attn.{x}_norm.weight": (head,) for x in "qk"}
    return shapes


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms around 1, biases of 0.3, matrices (and embeddings, which may be tied) that keep logits around 1."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.1 * noise
    if name.endswith(".bias"):
        return 0.3 * noise
    return noise / math.sqrt(shape[-1])


def _save_shards(folder: Path, tensors: dict[str, Tensor], count: int = 3) -> None:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = names[shard::count]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
