"""How is the demo model made, from the text that ships with Python to a folder in Hugging Face layout?

python -m hjgc.models.training.train --device cuda --output models/demo
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from hjgc.models.config import DecoderConfig
from hjgc.models.training.card import Facts, write_card
from hjgc.models.training.corpus import Corpus, build_corpus, parse_corpus, split_corpus
from hjgc.models.training.evaluate import Tokens, bits_per_byte, continue_text, encode_documents, unigram_bits_per_byte
from hjgc.models.training.network import TrainableDecoder
from hjgc.models.training.store import round_to_half, store_model, write_whole
from hjgc.models.training.tokenizer import train_tokenizer

PROMPTS = ("The list of", "Return a new", "If the file")


@dataclass(frozen=True)
class Recipe:
    """Every number of the training that was chosen, and not measured."""

    vocabulary: int = 2048
    hidden: int = 256
    mlp: int = 640
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    context: int = 1024
    dropout: float = 0.3
    batch: int = 16
    steps: int = 4000
    warm_up: int = 100
    peak_rate: float = 3e-3
    weight_decay: float = 3.0  # so little text is learned by heart under the usual 0.1
    looks: int = 20  # how often the validation text is read
    seed: int = 20240229


@dataclass(frozen=True)
class Material:
    """The three parts of the corpus as token ids."""

    training: Tokens
    validation: Tokens
    held_out: Tokens


@dataclass
class Best:
    """The checkpoint with the least validation loss so far."""

    bits: float = math.inf
    step: int = 0
    weights: dict[str, Tensor] | None = None


def make_demo_model(corpus: Corpus, recipe: Recipe, device: str, output: Path) -> Facts:
    """Tokenize, train, round to float16, measure, store."""
    tokenizer = train_tokenizer((d.text for d in split_corpus(corpus.documents).training), recipe.vocabulary)
    material = prepare(corpus, tokenizer)
    config = configure(recipe)
    network, best = train(material, config, recipe, device)
    round_to_half(network)
    facts = measure(network, best, corpus, tokenizer, material, config, recipe)
    store_model(output, network, config, tokenizer)
    write_whole(output / "README.md", write_card(facts).encode())
    return facts


def configure(recipe: Recipe) -> DecoderConfig:
    return DecoderConfig(
        model_type="llama",
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        layers=recipe.layers,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        context=recipe.context,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tied_embeddings=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


def prepare(corpus: Corpus, tokenizer: Tokenizer) -> Material:
    split = split_corpus(corpus.documents)
    return Material(
        encode_documents(tokenizer, split.training),
        encode_documents(tokenizer, split.validation),
        encode_documents(tokenizer, split.held_out),
    )


def train(material: Material, config: DecoderConfig, recipe: Recipe, device: str) -> tuple[TrainableDecoder, Best]:
    """The network with the weights of its best checkpoint."""
    torch.manual_seed(recipe.seed)
    network = TrainableDecoder(config, recipe.dropout).to(device)
    optimizer = _optimizer(network, recipe)
    best = Best()
    windows = _windows(material.training.documents, recipe, device)
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_rate * schedule(step, recipe)
        loss = _learn(network, optimizer, next(windows))
        if step % max(1, recipe.steps // recipe.looks) == 0:
            bits = bits_per_byte(network, material.validation, config.context)
            print(
                f"step {step}: training {loss.item():.3f} nats a token, validation {bits:.4f} bits a byte", flush=True
            )
            if bits < best.bits:
                best = Best(bits, step, copy.deepcopy(network.state_dict()))
    if best.weights is not None:
        network.load_state_dict(best.weights)
    return network, best


def schedule(step: int, recipe: Recipe) -> float:
    """The fraction of the peak rate: a linear rise, then a cosine down to nothing."""
    if step < recipe.warm_up:
        return step / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.5 * (1 + math.cos(math.pi * done))


def measure(
    network: TrainableDecoder,
    best: Best,
    corpus: Corpus,
    tokenizer: Tokenizer,
    material: Material,
    config: DecoderConfig,
    recipe: Recipe,
) -> Facts:
    """The only function that reads the held-out text."""
    m = material
    device = next(network.parameters()).device
    return Facts(
        config=config,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        python=corpus.python,
        torch=torch.__version__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU ({platform.machine()})",
        corpus_digest=corpus.digest(),
        documents=len(corpus.documents),
        corpus_bytes=sum(len(document.text.encode()) for document in corpus.documents),
        training_bytes=m.training.size,
        training_tokens=m.training.count(),
        validation_bytes=m.validation.size,
        held_out_bytes=m.held_out.size,
        held_out_tokens=m.held_out.count(),
        steps=recipe.steps,
        best_step=best.step,
        tokens_per_step=recipe.batch * recipe.context,
        validation_bits=best.bits,
        held_out_bits=bits_per_byte(network, m.held_out, config.context),
        unigram_bits=unigram_bits_per_byte(m.training, m.held_out, config.vocab_size),
        prompts=PROMPTS,
        samples=tuple(continue_text(network, tokenizer, prompt, 120, 0.7) for prompt in PROMPTS),
    )


def _windows(documents: list[list[int]], recipe: Recipe, device: str) -> Iterator[Tensor]:
    """Batches [B, context+1] that start anywhere in the documents, laid end to end in a random order, seed fixed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    stream = torch.tensor([token for index in _shuffled(len(documents), generator) for token in documents[index]])
    stream, offsets = stream.to(device), torch.arange(recipe.context + 1, device=device)
    while True:
        starts = torch.randint(len(stream) - recipe.context, (recipe.batch,), generator=generator)
        yield stream[starts.to(device)[:, None] + offsets]


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()


def _learn(network: TrainableDecoder, optimizer: torch.optim.Optimizer, window: Tensor) -> Tensor:
    network.train()
    with torch.autocast(window.device.type, dtype=torch.bfloat16):
        logits = network(window[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _optimizer(network: TrainableDecoder, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    scales = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m hjgc.models.training.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="windows a step (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="a torch device (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--corpus", type=Path, help="a text saved by hjgc.models.training.corpus (default: build it)")
    options = parser.parse_args(arguments)
    corpus = build_corpus() if options.corpus is None else parse_corpus(options.corpus.read_bytes())
    print(f"corpus of Python {corpus.python}: {len(corpus.documents)} documents, sha256 {corpus.digest()}", flush=True)
    recipe = replace(Recipe(), steps=options.steps, batch=options.batch)
    facts = make_demo_model(corpus, recipe, options.device, options.output)
    print(f"held out: {facts.held_out_bits:.4f} bits a byte, unigram {facts.unigram_bits:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
