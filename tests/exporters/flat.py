"""How do exporters that take tensors only get at a model that takes a cache? By a wrapper of inputs in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, StaticLayer

from tests.exporters.checkpoints import MAJOR

Kind = Literal["growing", "windowed", "static", "new", "none"]
"""What becomes of the cache: it grows; it keeps the window's last rows; it has room from the start; it is not taken but
given out; there is none."""
BATCH, NEW, PAST, ROOM = 2, 3, 5, 64


class Flat(torch.nn.Module):
    """Tensors in the order of `names` in; logits and caches out."""

    def __init__(self, model: Any, names: list[str], kind: Kind) -> None:
        super().__init__()
        self.model, self.names, self.kind = model, names, kind

    def forward(self, *tensors: Tensor) -> Any:
        given = dict(zip(self.names, tensors, strict=True))
        known = {name: given[name] for name in NAMED if name in given}
        if self.kind == "none":
            return self.model(**known, use_cache=False).logits
        result = self.model(**known, past_key_values=self._cache(given), use_cache=True)
        caches = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *caches)

    def _cache(self, given: dict[str, Tensor]) -> Any:
        count = self.model.config.num_hidden_layers
        if self.kind == "new":
            return DynamicCache()
        past = [tuple(given[f"past_key_values.{i}.{role}"] for role in ("key", "value")) for i in range(count)]
        if self.kind == "windowed":
            return DynamicCache(past, config=self.model.config)
        if self.kind == "static":
            return _static_cache(past, given)
        make: Any = DynamicCache
        return make(past) if MAJOR >= 5 else make.from_legacy_cache(past)


NAMED = ("input_ids", "attention_mask", "position_ids", "cache_position")


def _static_cache(past: list[Any], given: dict[str, Tensor]) -> Cache:
    """What StaticCache makes, without its sliding layers: those would bake in whether they are full."""
    cache = Cache(layers=[StaticLayer(max_cache_len=ROOM) for _ in past])
    for layer, (keys, values) in zip(cache.layers, past, strict=True):
        state: Any = layer
        state.keys, state.values = keys.clone(), values.clone()
        state.is_initialized, state.dtype, state.device = True, keys.dtype, keys.device
        if MAJOR >= 5:
            state.cumulative_length = given["cache_length"].clone()
    return cache


@dataclass(frozen=True)
class Example:
    """A wrapper, tensors to trace it with, and what its inputs and outputs are called; `axes` names the free sizes of
    each input."""

    wrapper: Flat
    tensors: tuple[Tensor, ...]
    names: list[str]
    outputs: list[str]
    axes: tuple[dict[int, str], ...]


def example(model: Any, kind: Kind = "growing", *, mask: bool = True, positions: bool = True) -> Example:
    past = PAST if kind in ("growing", "windowed", "static") else 0
    inputs = _tokens(past, mask, positions)
    if kind == "static":
        length: tuple[Tensor, dict[int, str]] = (torch.tensor(past), {})
        place = (torch.arange(past, past + NEW), {0: "sequence_length"})
        inputs |= {"cache_length": length} if MAJOR >= 5 else {"cache_position": place}
    inputs |= _caches(model, kind) if past else {}
    names = list(inputs)
    outputs = (
        ["logits"]
        if kind == "none"
        else ["logits", *(name.replace("past_key_values", "present") for name in _slots(model))]
    )
    return Example(
        Flat(model, names, kind),
        tuple(tensor for tensor, _ in inputs.values()),
        names,
        outputs,
        tuple(axes for _, axes in inputs.values()),
    )


def _tokens(past: int, mask: bool, positions: bool) -> dict[str, tuple[Tensor, dict[int, str]]]:
    rows = {0: "batch_size", 1: "sequence_length"}
    seen = {0: "batch_size", 1: "total_sequence_length" if past else "sequence_length"}
    places = torch.arange(past, past + NEW)[None].repeat(BATCH, 1)
    inputs = {"input_ids": (torch.arange(3, 3 + BATCH * NEW).reshape(BATCH, NEW), rows)}
    inputs |= {"attention_mask": (torch.ones(BATCH, past + NEW, dtype=torch.int64), seen)} if mask else {}
    return inputs | ({"position_ids": (places, rows)} if positions else {})


def _slots(model: Any) -> list[str]:
    layers = range(model.config.num_hidden_layers)
    return [f"past_key_values.{i}.{role}" for i in layers for role in ("key", "value")]


def _caches(model: Any, kind: Kind) -> dict[str, tuple[Tensor, dict[int, str]]]:
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = ROOM if kind == "static" else PAST
    axes = {0: "batch_size"} if kind == "static" else {0: "batch_size", 2: "past_sequence_length"}
    shape = (BATCH, config.num_key_value_heads, rows, size)
    return {name: (torch.randn(shape).to(model.dtype), axes) for name in _slots(model)}
