"""What does a captured step of one row call: the same arithmetic as the references, its views and results made once?

A decode step is small calls between large products, and the products push everything else out of the caches: what a
call costs is not its arithmetic but finding its code, its views and its memory again. So each op that a decode step
repeats has a bound form here: a function that takes the operands and gives a call without arguments. The promotion gate
compares every graph made of these with the references, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from hjgc.plan_format.ops.attention import reference
from hjgc.plan_format.ops.rms_norm import normalise

Call = Callable[[], Any]


def attention_inputs(
    x: Any, norm_weight: Any, weight: Any, bias: Any, query_norm: Any, key_norm: Any, cos: Any, sin: Any,
    parameters: Any, query: Any, key_cache: Any, value_cache: Any, *, epsilon: float, head_norm_epsilon: float,
    ring: bool,
) -> Call:  # fmt: skip
    del ring
    heads, (kv_heads, _, size) = query.shape[1], key_cache.shape
    product = _product(
        _norm(x, norm_weight, epsilon), weight, bias, rows := torch.empty(1, weight.shape[0], dtype=x.dtype)
    )
    split = rows.view(heads + 2 * kv_heads, size)
    qk, v = split[: heads + kv_heads], split[heads + kv_heads :]
    q, k = qk[:heads], qk[heads:]
    source = torch.empty_like(qk) if query_norm is not None else qk
    turned = torch.empty_like(qk)
    (first, second), (to_first, to_second) = source.chunk(2, -1), turned.chunk(2, -1)
    turned_query, turned_key, to_query = turned[:heads], turned[heads:], query[0]

    def run() -> None:
        product()
        if query_norm is not None:
            normed = (normalise(q, query_norm, head_norm_epsilon), normalise(k, key_norm, head_norm_epsilon))
            torch.cat(normed, 0, out=source)
        torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=to_second).addcmul_(first, sin)
        to_query.copy_(turned_query)
        row = parameters.start % key_cache.shape[1]
        key_cache.select(1, row).copy_(turned_key)
        value_cache.select(1, row).copy_(v)

    return run


def attention(
    query: Any, key_cache: Any, value_cache: Any, parameters: Any, y: Any, *_: Any, scale: float, window: int
) -> Call:
    if window:
        return lambda: reference(query, key_cache, value_cache, parameters, y, scale=scale, window=window)
    grouped = query.view(key_cache.shape[0], -1, key_cache.shape[2])
    keys, result = key_cache.transpose(1, 2), y.view(grouped.shape)

    def run() -> None:
        length = parameters.start + 1
        scores = torch.bmm(grouped, keys.narrow(2, 0, length)).mul_(scale)
        torch.bmm(torch.softmax(scores, -1), value_cache.narrow(1, 0, length), out=result)

    return run


def linear(x: Any, weight: Any, bias: Any, residual: Any, y: Any) -> Call:
    if residual is None:
        return _product(lambda: x, weight, bias, y)
    product = _product(lambda: x, weight, bias, result := torch.empty_like(y))

    def run() -> None:
        product()
        torch.add(result, residual, out=y)

    return run


def gated_linear(x: Any, norm_weight: Any, weight: Any, bias: Any, y: Any, *, epsilon: float) -> Call:
    both = torch.empty(1, weight.shape[0], dtype=x.dtype)
    product = _product(_norm(x, norm_weight, epsilon), weight, bias, both)
    gate, up = both.chunk(2, 1)

    def run() -> None:
        product()
        torch.mul(F.silu(gate), up, out=y)

    return run


BOUND: dict[str, Callable[..., Call]] = {
    "attention_inputs": attention_inputs,
    "attention": attention,
    "linear": linear,
    "gated_linear": gated_linear,
}
"""By op. For one row and float32 throughout; everything else is the reference with its operands bound."""


def _norm(x: Any, weight: Any, epsilon: float) -> Callable[[], Any]:
    if weight is None:
        return lambda: x
    row, size, result = x.view(-1), x.shape[-1], torch.empty_like(x)

    def run() -> Any:
        scale = (float(row.dot(row)) / size + epsilon) ** -0.5
        return torch.mul(x, scale, out=result).mul_(weight)

    return run


def _product(x: Callable[[], Any], weight: Any, bias: Any, result: Any) -> Call:
    transposed = weight.t()
    if bias is None:
        return lambda: torch.mm(x(), transposed, out=result)
    return lambda: torch.addmm(bias, x(), transposed, out=result)
