"""Attention over rows that hold all heads side by side, as products leave them: no axis has to be moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import Shape, broadcast, operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """Queries lie in x0 [B, S, ...] from column `columns[0]` on, `heads` of `size` each; keys in x1 [B, T, ...] from
    `columns[1]` on and values in x2 [B, T, ...] from `columns[2]` on, `groups` of `size` each. A mask x3 (booleans: is
    it seen? numbers: what is added?) is broadcast to [B, H, S, T]. The result is [B, S, H * size]."""
    del outputs
    query, key, value, mask = (*inputs, None)[:4]
    if query is None or key is None or value is None or len(inputs) > 4:
        raise ValueError("expected queries, keys and values")
    if query.dtype not in FLOATS or {key.dtype, value.dtype} != {query.dtype}:
        raise ValueError(f"expected one floating-point type, found {query}, {key} and {value}")
    heads, groups, size, columns = (attributes[name] for name in ("heads", "groups", "size", "columns"))
    if min(heads, groups, size) < 1 or heads % groups or len(columns) != 3:
        raise ValueError(f"expected heads that share groups, and three columns, found {heads}, {groups}, {columns}")
    for tensor, first, count in zip((query, key, value), columns, (heads, groups, groups), strict=True):
        width = tensor.shape[-1] if len(tensor.shape) == 3 else 0
        if not isinstance(width, int) or type(first) is not int or not 0 <= first <= width - count * size:
            raise ValueError(f"expected {count} heads of {size} from column {first} on, found {tensor}")
    batch, rows = query.shape[:2]
    if key.shape[0] != batch or value.shape[:2] != key.shape[:2]:
        raise ValueError(f"expected keys and values that fit {query}, found {key} and {value}")
    wanted: Shape = (batch, heads, rows, key.shape[1])
    if mask is not None and (mask.dtype not in ("bool", *FLOATS) or broadcast([wanted, mask.shape]) != wanted):
        raise ValueError(f"expected a mask that fits {query} and its keys, found {mask}")
    return (TensorType(query.dtype, (batch, rows, heads * size)),)


def reference(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    heads: int,
    groups: int,
    size: int,
    columns: tuple[int, ...],
    scale: float,
    causal: bool,
    guarded: bool,
) -> None:
    """Computed in float32 at least. With `causal`, query i sees the keys up to i. A query that sees no key gives 0 if
    `guarded`, else what is no number."""
    import torch

    *rows, mask = operands(inputs, 4)
    wide = torch.float64 if rows[0].dtype == torch.float64 else torch.float32
    query, key, value = (
        x[..., first : first + count * size].unflatten(-1, (count, size)).transpose(1, 2).to(wide)
        for x, first, count in zip(rows, columns, (heads, groups, groups), strict=True)
    )
    scores = torch.matmul(query, key.repeat_interleave(heads // groups, 1).transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    weights = torch.softmax(scores, -1)
    if guarded:
        weights = torch.where((scores == -torch.inf).all(-1, keepdim=True), 0, weights)
    result = torch.matmul(weights, value.repeat_interleave(heads // groups, 1))
    outputs[0].copy_(result.transpose(1, 2).flatten(-2))


def operations(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], attributes: Mapping[str, Any]) -> int:
    del attributes
    return 4 * prod(outputs[0]) * inputs[1][1]


OP = tensor_op(
    "attention_rows",
    "y0 = softmax(scale * queries @ keys.T + x3) @ values, heads side by side in x0, x1 and x2",
    {
        "heads": int,
        "groups": int,
        "size": int,
        "columns": tuple,
        "scale": float,
        "causal": bool,
        "guarded": bool,
    },
    infer,
    reference,
    operations=operations,
)
