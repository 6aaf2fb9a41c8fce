"""Attention inputs: normalise, project to query, key and value, rotate, and append key and value to the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjgc.plan_format.ops.declaration import PARAMETERS, Dims, Op, constant, read, update, write
from hjgc.plan_format.ops.linear import multiply
from hjgc.plan_format.ops.rms_norm import normalise


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """The two halves of the last axis of x [M, heads, D] rotated by cos, sin [M, 1, D/2] (the layout LLaMA uses)."""
    import torch

    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    (first, second), (to_first, to_second) = x.chunk(2, -1), turned.chunk(2, -1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return turned


def reference(
    x: Any,
    norm_weight: Any,
    weight: Any,
    bias: Any,
    query_norm: Any,
    key_norm: Any,
    cos: Any,
    sin: Any,
    parameters: Any,
    query: Any,
    key_cache: Any,
    value_cache: Any,
    *,
    epsilon: float,
    head_norm_epsilon: float,
    ring: bool,
) -> None:
    """Where there is no `norm_weight`, x is normalised already."""
    import torch

    del ring  # full caches are long enough for row p mod C to be row p
    heads, (kv_heads, _, size) = query.shape[1], key_cache.shape
    rows, start = x.shape[0], parameters.start
    normal = x if norm_weight is None else normalise(x, norm_weight, epsilon)
    qkv = multiply(normal, weight, bias).view(rows, heads + 2 * kv_heads, size)
    qk, v = qkv.split((heads + kv_heads, kv_heads), 1)
    if query_norm is not None:
        q, k = qk.split((heads, kv_heads), 1)
        q, k = normalise(q, query_norm, head_norm_epsilon), normalise(k, key_norm, head_norm_epsilon)
        qk = torch.cat((q, k), 1)
    if cos.dtype != x.dtype:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    turned = rotate(qk, cos.unsqueeze(1), sin.unsqueeze(1))
    query.copy_(turned[:, :heads])
    append(key_cache, turned[:, heads:].transpose(0, 1), start)
    append(value_cache, v.transpose(0, 1), start)


def append(cache: Any, new: Any, start: int) -> None:
    """new [G, M, D] into a cache [G, C, D]: position p lies in row p mod C."""
    rows, capacity = new.shape[1], cache.shape[1]
    first = start % capacity
    before_end = min(rows, capacity - first)
    cache[:, first : first + before_end] = new[:, :before_end]
    cache[:, : rows - before_end] = new[:, before_end:]


def relations(dims: Dims, attributes: Mapping[str, Any]) -> str | None:
    del attributes
    if dims["N"] != (dims["Q"] + 2 * dims["G"]) * dims["D"]:
        return f"expected weight rows (heads + 2 x kv heads) x head size, found {dims['N']}"
    if dims["D"] != 2 * dims["F"]:
        return f"expected head size twice the frequencies, found {dims['D']} and {dims['F']}"
    return (
        None if dims["Q"] % dims["G"] == 0 else f"expected heads a multiple of kv heads, found {dims['Q']}, {dims['G']}"
    )


OP = Op(
    name="attention_inputs",
    summary="q, k, v = rotate(rms_norm(x) @ weight.T + bias); key_cache, value_cache += k, v",
    roles=(
        read("x", "M H"),
        constant("norm_weight", "H", optional=True),
        constant("weight", "N H"),
        constant("bias", "N", optional=True),
        constant("query_norm", "D", optional=True),
        constant("key_norm", "D", optional=True),
        read("cos", "M F", "float32"),
        read("sin", "M F", "float32"),
        PARAMETERS,
        write("query", "M Q D"),
        update("key_cache", "G C D", "cache"),
        update("value_cache", "G C D", "cache"),
    ),
    attributes={"epsilon": float, "head_norm_epsilon": float, "ring": bool},
    reference=reference,
    flops=lambda d: 2 * d["M"] * d["N"] * d["H"],
    bytes_moved=lambda d, item: (d["N"] * d["H"] + d["M"] * (d["H"] + d["N"])) * item,
    relations=relations,
)
