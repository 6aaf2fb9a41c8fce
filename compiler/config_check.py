"""Does the graph say what `config.json` beside it says? Exporters have dropped windows and misread the scaling of
rotary frequencies: the plan follows the graph, and the user is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hjgc.compiler.program import Network, Step, scalar
from hjgc.models.config import DecoderConfig, inverse_frequencies, read_config
from hjgc.plan_format.errors import InputError

NEAR = 1e-2
"""Relative: tables of cosines in bfloat16 give frequencies that are off by less than a half of it."""


def disagreements(folder: Path | None, network: Network) -> tuple[str, ...]:
    """A sentence for each number that differs; none without a config.json of a network that we know."""
    if folder is None or not (folder / "config.json").is_file():
        return ()
    try:
        config = read_config(folder)
    except InputError:
        return ()
    return tuple(
        f"{folder / 'config.json'} says {name} {said}, the graph computes with {found}: the plan follows the graph"
        for name, said, found in _compared(config, network)
        if said != found
    )


def _compared(config: DecoderConfig, network: Network) -> Iterator[tuple[str, object, object]]:
    """Name, what config.json says, what the graph says."""
    steps = network.programs[-1].steps
    attention = [step for step in steps if step.op == "attention"]
    yield "num_hidden_layers", config.layers, network.layers
    yield "vocab_size", config.vocab_size, network.vocab_size
    for step in attention[:1]:
        (_, heads, size), (kv_heads, *_) = step.operands["query"].shape, step.operands["key_cache"].shape
        yield "num_attention_heads", config.heads, heads
        yield "num_key_value_heads", config.kv_heads, kv_heads
        yield "head_dim", config.head_dim, size
    context = _context(network)
    window = config.window if config.window <= context else 0
    for found in sorted({int(scalar(step, "window")) for step in attention} - {window})[:1]:
        yield "sliding_window", window or "none", found or "none"
    epsilons = sorted({scalar(step, "epsilon") for step in steps if step.attributes.get("epsilon")})
    for found in [epsilon for epsilon in epsilons if not np.isclose(epsilon, config.norm_epsilon, rtol=NEAR)][:1]:
        yield "rms_norm_eps", config.norm_epsilon, found
    yield from _rotation(config, network, steps)


def _context(network: Network) -> int:
    return next(size.high for size in network.programs[0].sizes if size.name == "start")


def _rotation(config: DecoderConfig, network: Network, steps: tuple[Step, ...]) -> Iterator[tuple[str, object, object]]:
    """Rotary frequencies: the first that differs."""
    wanted = inverse_frequencies(config)
    for step in steps:
        if step.op != "rotary_table":
            continue
        entry = network.constants[step.operands["inverse_frequencies"].index]
        found = np.frombuffer(network.constant_bytes, np.float32, len(wanted), entry.offset)
        off = np.flatnonzero(~np.isclose(found, wanted, rtol=NEAR, atol=0.0))
        if entry.shape == wanted.shape and len(off):
            first = int(off[0])
            name = f"rope_theta and rope_scaling, rotary frequency {first} at"
            yield name, f"{wanted[first]:.4g}", f"{found[first]:.4g}"
