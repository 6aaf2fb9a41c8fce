"""How does a trained network become a folder that Hugging Face tools and hjgc both read?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer

from hjgc.models.config import DecoderConfig
from hjgc.models.training.network import TrainableDecoder
from hjgc.models.training.tokenizer import BEGIN, BEGIN_ID, END, END_ID


def store_model(folder: Path, network: TrainableDecoder, config: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Write the weights as float16 and everything that describes them; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(folder / "config.json", _json(describe(config)))
    write_whole(folder / "generation_config.json", _json(GENERATION))
    write_whole(folder / "tokenizer.json", tokenizer.to_str().encode())
    write_whole(folder / "tokenizer_config.json", _json({**TOKENIZER, "model_max_length": config.context}))
    write_whole(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def round_to_half(network: TrainableDecoder) -> None:
    """Make the weights in memory equal to those that `store_model` writes."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then move into place: a reader never meets half a file."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def describe(c: DecoderConfig) -> dict[str, Any]:
    """The network's `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": c.model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,
        "hidden_act": "silu",
        "attention_bias": c.qkv_bias,
        "mlp_bias": c.mlp_bias,
        "tie_word_embeddings": c.tied_embeddings,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "torch_dtype": "float16",
    }


GENERATION: dict[str, Any] = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID}
TOKENIZER: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BEGIN,
    "eos_token": END,
    "clean_up_tokenization_spaces": False,
}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
