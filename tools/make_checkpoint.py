"""How does anybody get a checkpoint of a given shape to measure with, without downloading one?

`python -m hjgc.tools.make_checkpoint --preset 110m /tmp/110m` writes a Hugging Face folder whose weights are random:
each drawn from a seeded normal distribution, scaled so that activations and logits stay around 1. The same arguments
give the same bytes. Memory use does not depend on the size of the model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from hjgc.models.checkpoint import SINGLE, tensor_shapes
from hjgc.models.config import parse_config
from hjgc.plan_format.files import replacing, write_atomically

PIECE = 1 << 22  # elements drawn at a time

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PRESETS: dict[str, dict[str, Any]] = {
    # 109.5 M parameters; the shapes of the stories110M model, with a longer context
    "110m": LLAMA
    | {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    },
    # 1.10 B parameters, grouped-query attention
    "tinyllama-1.1b": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "llama2-7b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
}
STORED = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def make_checkpoint(
    folder: Path, preset: str, *, dtype: str | None = None, sparse: bool = False, seed: int = 0
) -> tuple[int, int]:
    """Write config.json and model.safetensors into `folder`; return how many parameters and bytes. `sparse` leaves a
    hole where the weights would be (the file reads as zeros): enough to export and compile, useless to run."""
    config = PRESETS[preset] | ({} if dtype is None else {"torch_dtype": dtype})
    stored, item = STORED[config["torch_dtype"]]
    shapes = tensor_shapes(parse_config(config, folder / "config.json"))
    header, length = _header(shapes, stored, item)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SINGLE) as temporary:
        with open(temporary, "wb") as file:
            file.write(header)
            file.truncate(len(header) + length)
        if not sparse:
            _write_weights(temporary, len(header), shapes, config["torch_dtype"], seed)
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return length // item, length


def _header(shapes: dict[str, tuple[int, ...]], stored: str, item: int) -> tuple[bytes, int]:
    """A safetensors header, padded so that data begin at a multiple of 64, and how many bytes of data follow."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * item
        entries[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    words = json.dumps(entries, separators=(",", ":")).encode()
    words += b" " * (-(len(words) + 8) % 64)
    return len(words).to_bytes(8, "little") + words, end


def _write_weights(path: Path, begin: int, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    """Every tensor behind the header, which ends at `begin`; each has its own random numbers, so all cores may draw."""
    convert, item = _converter(dtype), STORED[dtype][1]
    ends = list(accumulate(math.prod(shape) * item for shape in shapes.values()))

    def write(number: int, name: str, shape: tuple[int, ...]) -> None:
        with open(path, "r+b") as file:
            file.seek(begin + (ends[number - 1] if number else 0))
            for piece in _draw(name, shape, np.random.default_rng([seed, number])):
                file.write(convert(piece).tobytes())

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy draws without the interpreter's lock
        list(pool.map(write, range(len(shapes)), shapes.keys(), shapes.values()))


def _draw(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Norms around 1, biases of 0.1, matrices such that a product keeps the size of its input."""
    mean, deviation = (1.0, 0.1) if "norm" in name else (0.0, 0.1 if len(shape) == 1 else 1 / math.sqrt(shape[-1]))
    left = math.prod(shape)
    while left:
        piece = random.standard_normal(min(left, PIECE), dtype=np.float32)
        piece *= deviation
        piece += mean
        yield piece
        left -= len(piece)


def _converter(dtype: str) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    match dtype:
        case "float32":
            return lambda piece: piece
        case "float16":
            return lambda piece: piece.astype(np.float16)
        case _:
            return _bfloat16


def _bfloat16(piece: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest even. No value here is close to overflow."""
    bits = piece.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(sorted(PRESETS)), required=True, help="Which shapes.")
@click.option("--dtype", type=click.Choice(sorted(STORED)), help="Of the stored weights.  [default: the preset's]")
@click.option("--sparse", is_flag=True, help="A file of the right size without weights, to export and compile only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, other weights.")
def command(folder: Path, preset: str, dtype: str | None, sparse: bool, seed: int) -> None:
    """Write a checkpoint of random weights into FOLDER."""
    parameters, size = make_checkpoint(folder, preset, dtype=dtype, sparse=sparse, seed=seed)
    click.echo(f"{folder}: {parameters:,} parameters, {size:,} bytes{' (sparse)' if sparse else ''}")


if __name__ == "__main__":
    command()
