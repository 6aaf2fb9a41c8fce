"""Is the stored demo model small, whole, trained, and the same network to transformers and to us?"""

from __future__ import annotations

import json
import math
import pydoc_data.topics
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from hjgc.models.checkpoint import locate_tensors
from hjgc.models.config import read_config
from hjgc.models.llama import Decoder
from hjgc.models.training.network import TrainableDecoder
from tests.models.running import transformers_logits

FOLDER = Path(__file__).parents[2] / "models" / "demo"
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}

# From the docstrings of `queue.py`, `collections` and `pydoc.py`, which the split holds out.
HELD_OUT = (
    "To create code that needs to wait for all queued tasks to be completed, the preferred technique is to use the "
    "join() method.\n\n"
    "Put an item into the queue. If optional args 'block' is true and 'timeout' is None (the default), block if "
    "necessary until a free slot is available. If 'timeout' is a non-negative number, it blocks at most 'timeout' "
    "seconds and raises the Full exception if no free slot was available within that time.\n\n"
    "A ChainMap groups multiple dicts (or other mappings) together to create a single, updateable view. The underlying "
    "mappings are stored in a list. That list is public and can be accessed or updated using the *maps* attribute. "
    "There is no other state.\n\n"
    'Run "pydoc -w <name>" to write out the HTML documentation for a module to a file named "<name>.html".'
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def network() -> TrainableDecoder:
    network = TrainableDecoder(read_config(FOLDER))
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(FOLDER / "model.safetensors").items()})
    return network.eval()


def test_the_folder_is_complete_and_under_10_megabytes() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_it_has_between_two_and_five_million_parameters_in_half_precision() -> None:
    tensors = locate_tensors(FOLDER, read_config(FOLDER))
    assert {tensor.dtype for tensor in tensors.values()} == {"F16"}
    assert 2_000_000 <= sum(math.prod(tensor.shape) for tensor in tensors.values()) <= 5_000_000
    assert read_config(FOLDER).context >= 1024


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Return a new list.",
        "  leading, trailing, and\ttabs \r\n\r\n",
        "naïve café Ωμέγα Привет שלום 日本語",
        "🙂👩‍👩‍👧 \U0001f1e9\U0001f1ea \u200b\ufeff\x00\x7f",
        "x = {1: 'one'}  # don't",
        "".join(map(chr, range(1, 0x250))),
    ],
)
def test_its_tokenizer_gives_any_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == read_special_ids()["bos_token_id"]
    assert tokenizer.decode(ids) == text
    assert AutoTokenizer.from_pretrained(FOLDER).decode(ids, skip_special_tokens=True) == text


def test_its_special_ids_agree_in_all_files(tokenizer: Tokenizer) -> None:
    ids = read_special_ids()
    named = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer.token_to_id(named["bos_token"]) == ids["bos_token_id"]
    assert tokenizer.token_to_id(named["eos_token"]) == ids["eos_token_id"]
    generation = GenerationConfig.from_pretrained(FOLDER)
    assert (generation.bos_token_id, generation.eos_token_id) == (ids["bos_token_id"], ids["eos_token_id"])
    assert tokenizer.get_vocab_size() == read_config(FOLDER).vocab_size


def test_transformers_the_decoder_and_the_training_network_give_equal_logits(
    network: TrainableDecoder, tokenizer: Tokenizer
) -> None:
    ids = torch.tensor([tokenizer.encode(HELD_OUT).ids])
    judge = torch.from_numpy(transformers_logits(FOLDER, ids.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(decoder_logits(ids), judge, rtol=0, atol=1e-4)
        torch.testing.assert_close(network(ids)[0], judge, rtol=0, atol=1e-4)


def test_transformers_finds_every_weight_and_no_other() -> None:
    loaded: Any = LlamaForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.dtype == torch.float16


def test_it_predicts_held_out_text_far_better_than_token_frequencies(
    network: TrainableDecoder, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(HELD_OUT).ids
    with torch.no_grad():
        logits = network(torch.tensor([ids[:-1]]))[0]
    size = len(HELD_OUT.encode())
    bits = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item() / math.log(2) / size
    counts = Counter(ids[1:])
    own_frequencies = sum(-math.log2(counts[token] / (len(ids) - 1)) for token in ids[1:]) / size
    assert bits < 1.7
    assert bits < 0.85 * own_frequencies  # frequencies counted in the very text: better than any honest unigram model


def test_the_readme_states_the_held_out_bits_per_byte_the_licence_and_the_digest() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"\*\*(\d\.\d{3}) bits per byte\*\*", text)
    assert stated is not None and 1.0 < float(stated[1]) < 2.0
    assert "PSF-2.0" in text and re.search(r"`[0-9a-f]{64}`", text)


@pytest.mark.parametrize("prompt", ["The list of", "Return a new", "If the file"])
def test_its_greedy_continuation_is_made_of_words_of_the_documentation(
    network: TrainableDecoder, tokenizer: Tokenizer, prompt: str
) -> None:
    ids = tokenizer.encode(prompt).ids
    for _ in range(40):
        with torch.no_grad():
            ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
    continuation = tokenizer.decode(ids)
    assert continuation.startswith(prompt)
    words = re.findall(r"[a-z]+", continuation.removeprefix(prompt).lower())
    known = set(re.findall(r"[a-z]+", " ".join(pydoc_data.topics.topics.values()).lower()))
    assert len(words) >= 15 and len(set(words)) >= 8
    assert sum(word in known for word in words) >= 0.9 * len(words)


def read_special_ids() -> dict[str, int]:
    raw = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    return {name: raw[name] for name in ("bos_token_id", "eos_token_id")}


def decoder_logits(ids: Tensor) -> Tensor:
    config = read_config(FOLDER)
    decoder = Decoder(config, torch.float16)
    decoder.load_state_dict(load_file(FOLDER / "model.safetensors"))
    nothing = torch.zeros(1, config.kv_heads, 0, config.head_dim)
    return decoder(ids, torch.arange(ids.shape[1])[None], *[nothing] * (2 * config.layers))[0][0]
