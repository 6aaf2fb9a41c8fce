"""Attention: causal, scaled dot-product, of this call's queries over the whole cache so far, heads grouped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjgc.plan_format.ops.declaration import PARAMETERS, Dims, Op, read, update, write


def attend(query: Any, key: Any, value: Any, start: int, scale: float, window: int = 0) -> Any:
    """query [M, Q, D] over key and value [G, L, D], L = start + M: [M, Q, D]. Row i sees the first start + i + 1; of
    these the last `window`, if it is not 0."""
    import torch
    import torch.nn.functional as F

    rows, heads, size = query.shape
    groups = heads // key.shape[0]
    if rows == 1 and not window:
        scores = torch.bmm(query.view(key.shape[0], groups, size), key.transpose(1, 2)).mul_(scale)
        return torch.bmm(torch.softmax(scores, -1), value).view(1, heads, size)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    mask = None
    if start or window:
        mask = torch.ones(rows, start + rows, dtype=torch.bool).tril(start)
    if window and mask is not None:
        mask = mask.triu(start - window + 1)
    return F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )[0].transpose(0, 1)


def reference(
    query: Any,
    key_cache: Any,
    value_cache: Any,
    parameters: Any,
    y: Any,
    partials: Any = None,
    counters: Any = None,
    *,
    scale: float,
    window: int,
) -> None:
    """`partials` and `counters` are for kernels that share the cache out: scratch, and zeros that they leave zero."""
    del partials, counters
    rows, start = query.shape[0], parameters.start
    first = max(0, start - window + 1) if window else 0
    key, value = (cached(cache, first, start + rows).to(query.dtype) for cache in (key_cache, value_cache))
    result = attend(query, key, value, start - first, scale, window)
    y.view(query.shape).copy_(result)


def cached(cache: Any, first: int, end: int) -> Any:
    """The rows of positions `first` to `end` of a cache [G, C, D]: position p lies in row p mod C."""
    capacity = cache.shape[1]
    if end <= capacity:
        return cache[:, first:end]
    import torch

    return cache[:, torch.arange(first, end) % capacity]


def relations(dims: Dims, attributes: Mapping[str, Any]) -> str | None:
    if attributes.get("window", 0) < 0:
        return f"expected a window of 0 (all) or more keys, found {attributes['window']}"
    if dims["A"] != dims["Q"] * dims["D"]:
        return f"expected output columns heads x head size, found {dims['A']}"
    return (
        None if dims["Q"] % dims["G"] == 0 else f"expected heads a multiple of kv heads, found {dims['Q']}, {dims['G']}"
    )


OP = Op(
    name="attention",
    summary="y = softmax(scale * query @ key.T, causal, in the window) @ value",
    roles=(
        read("query", "M Q D"),
        read("key_cache", "G C D", "cache"),
        read("value_cache", "G C D", "cache"),
        PARAMETERS,
        write("y", "M A"),
        write("partials", "S", "float32", optional=True),
        update("counters", "G", "int32", optional=True),
    ),
    attributes={"scale": float, "window": int},
    reference=reference,
    flops=lambda d: 4 * d["Q"] * d["D"] * d["M"] * (d["start"] + d["M"]),
    bytes_moved=lambda d, item: 2 * (d["M"] * d["A"] + d["G"] * d["D"] * (d["start"] + d["M"])) * item,
    relations=relations,
)
