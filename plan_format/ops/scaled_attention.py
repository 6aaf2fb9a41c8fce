"""Scaled attention: for each query the mean of the values, weighed by how well their keys fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import Shape, broadcast, operands

SCORES = ("product", "capped", "biased", "weights")
"""What may come behind the result, in the order in which it is computed."""


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """Queries x0 [B, H, S, D], keys x1 [B, G, T, D] and values x2 [B, G, T, E] of one type, H a multiple of G. A mask
    x3 (booleans: is it seen? numbers: what is added?) is broadcast to [B, H, S, U]; keys past its U are not seen. x4
    [B] says how many keys each sequence has. Of x5 only axis 2 counts: so many keys lie before the first query. The
    result is [B, H, S, E]; behind it may come the `scores` [B, H, S, T]."""
    query, key, value, mask, lengths, past = (*inputs, None, None, None, None, None, None)[:6]
    if query is None or key is None or value is None or len(inputs) > 6:
        raise ValueError("expected queries, keys and values")
    if query.dtype not in FLOATS or {key.dtype, value.dtype} != {query.dtype}:
        raise ValueError(f"expected one floating-point type, found {query}, {key} and {value}")
    if not len(query.shape) == len(key.shape) == len(value.shape) == 4:
        raise ValueError(f"expected four axes, found {query}, {key} and {value}")
    if attributes["scores"] not in SCORES or attributes["computed"] not in ("float32", "float64"):
        raise ValueError(f"expected one of {', '.join(SCORES)}, in float32 or float64")
    batch, heads, rows, size = query.shape
    _, groups, keys, width = value.shape
    if key.shape != (batch, groups, keys, size) or value.shape[0] != batch or dims.divide(heads, groups) is None:
        raise ValueError(f"expected keys and values that fit {query}, found {key} and {value}")
    if mask is not None:
        _check_mask(mask, query, keys)
    if lengths is not None and (lengths.dtype != "int64" or lengths.shape != (batch,) or past is not None):
        raise ValueError(f"expected one int64 a sequence and no keys before, found {lengths} and {past}")
    if past is not None and len(past.shape) != 4:
        raise ValueError(f"expected keys before of four axes, found {past}")
    scores = TensorType(query.dtype, (batch, heads, rows, keys))
    return (TensorType(query.dtype, (batch, heads, rows, width)), scores)[: max(1, len(outputs))]


def _check_mask(mask: TensorType, query: TensorType, keys: Any) -> None:
    last = mask.shape[-1] if mask.shape else 0
    covers = last == keys or (isinstance(last, int) and isinstance(keys, int) and last < keys)
    wanted: Shape = (*query.shape[:3], last)
    if mask.dtype not in ("bool", query.dtype) or not covers or broadcast([wanted, mask.shape]) != wanted:
        raise ValueError(f"expected a mask that fits {query} and its keys, found {mask}")


def reference(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    scale: float,
    softcap: float,
    causal: bool,
    left: int,
    right: int,
    scores: str,
    computed: str,
) -> None:
    """A query that sees no key gives 0."""
    import torch

    query, key, value, mask, lengths, past = operands(inputs, 6)
    batch, heads, rows, size = query.shape
    query, key, value = (x.to(getattr(torch, computed)) for x in (query, key, value))
    groups = key.shape[1]
    together = (query * scale).reshape(batch, groups, heads // groups * rows, size)  # all rows that read the same keys
    product = torch.matmul(together, key.transpose(-1, -2)).reshape(batch, heads, rows, key.shape[2])
    capped = softcap * torch.tanh(product / softcap) if softcap else product
    bias = _mask_bias(product, mask) + _place_bias(product, lengths, past, causal=causal, left=left, right=right)
    biased = capped + bias
    weights = torch.softmax(biased, -1).masked_fill((bias == -torch.inf).all(-1, keepdim=True), 0)
    result = torch.matmul(weights.reshape(batch, groups, heads // groups * rows, key.shape[2]), value)
    outputs[0].copy_(result.reshape(outputs[0].shape))
    if len(outputs) > 1:
        outputs[1].copy_((product, capped, biased, weights)[SCORES.index(scores)])


def _mask_bias(product: Any, mask: Any) -> Any:
    import torch

    if mask is None:
        return torch.zeros((), dtype=product.dtype)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=product.dtype).masked_fill(~mask, -torch.inf)
    missing = product.shape[-1] - mask.shape[-1]
    return torch.nn.functional.pad(mask.to(product.dtype), (0, missing), value=-torch.inf)


def _place_bias(product: Any, lengths: Any, past: Any, *, causal: bool, left: int, right: int) -> Any:
    """Which keys each query may see, by where they lie: [S, T], or one for each sequence."""
    import torch

    rows, keys = product.shape[-2:]
    first = 0 if past is None else past.shape[2]
    if lengths is not None:
        lengths = lengths.reshape(-1, 1, 1, 1)
        first = lengths - rows
    places = torch.arange(keys)
    ahead = places - (first + torch.arange(rows)[:, None])
    unseen = torch.zeros(ahead.shape, dtype=torch.bool)
    if causal:
        unseen = unseen | (ahead > 0)
    if left >= 0:
        unseen = unseen | (-ahead > left)
    if right >= 0:
        unseen = unseen | (ahead > right)
    if lengths is not None:
        unseen = unseen | (places >= lengths)
    return torch.zeros(unseen.shape, dtype=product.dtype).masked_fill(unseen, -torch.inf)


def operations(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], attributes: Mapping[str, Any]) -> int:
    del attributes
    query, value = inputs[0], inputs[2]
    return 2 * prod(query[:3]) * value[2] * (query[3] + value[3])


OP = tensor_op(
    "scaled_attention",
    "y0 = softmax(scale * x0 @ x1.T + what masks and places say) @ x2; y1 = the scores",
    {
        "scale": float,
        "softcap": float,
        "causal": bool,
        "left": int,
        "right": int,
        "scores": str,
        "computed": str,
    },
    infer,
    reference,
    operations=operations,
)
