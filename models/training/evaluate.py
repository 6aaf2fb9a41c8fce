"""How well does the network predict text it has not seen, in bits per byte, and how does its own text read?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from hjgc.models.training.corpus import Document
from hjgc.models.training.network import TrainableDecoder
from hjgc.models.training.tokenizer import BEGIN_ID, END_ID


@dataclass(frozen=True)
class Tokens:
    """Documents as [BEGIN, ids ..., END], and how many bytes of UTF-8 they say."""

    documents: list[list[int]]
    size: int

    def count(self) -> int:
        return sum(map(len, self.documents))


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> Tokens:
    """The documents under the tokenizer, which puts BEGIN in front."""
    encoded = [[*tokenizer.encode(document.text).ids, END_ID] for document in documents]
    return Tokens(encoded, sum(len(document.text.encode()) for document in documents))


@torch.no_grad()
def bits_per_byte(network: TrainableDecoder, tokens: Tokens, context: int) -> float:
    """Every id but a document's first is predicted once, from the at most `context` ids before it in its window."""
    network.eval()
    device = next(network.parameters()).device
    nats = 0.0
    for ids in tokens.documents:
        for start in range(0, len(ids) - 1, context):
            window = torch.tensor(ids[start : start + context + 1], device=device)
            logits = network(window[None, :-1])[0].float()
            nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return nats / math.log(2) / tokens.size


def unigram_bits_per_byte(training: Tokens, tokens: Tokens, vocabulary: int) -> float:
    """The same under the token frequencies of the training text, one added to each: a model without any context."""
    counts = Counter(token for ids in training.documents for token in ids)
    total = counts.total() + vocabulary
    bits = (-math.log2((counts[token] + 1) / total) for ids in tokens.documents for token in ids[1:])
    return sum(bits) / tokens.size


@torch.no_grad()
def continue_text(network: TrainableDecoder, tokenizer: Tokenizer, prompt: str, new: int, temperature: float) -> str:
    """The prompt with up to `new` sampled tokens after it (temperature 0: the likeliest each time), seed 0."""
    network.eval()
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = tokenizer.encode(prompt).ids
    for _ in range(new):
        logits = network(torch.tensor([ids], device=device))[0, -1].float().cpu()
        chosen = _choose(logits, temperature, generator)
        if chosen in (BEGIN_ID, END_ID):
            break
        ids.append(chosen)
    return tokenizer.decode(ids)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
