"""Linear attention: a state that every row adds to, decays and corrects, and then reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """Queries x0 [B, T, Q * K], keys x1 [B, T, H * K], values x2 [B, T, H * V], Q a multiple of H. If they are there:
    the state before x3 [B, H, K, V], the logarithm of the decay x4 [B, T, H] or [B, T, H * K], and the rate of
    correction x5 [B, T, H] or [B, T, 1]. The rows [B, T, Q * V]; behind them may come the state, of x3's type, else of
    x0's."""
    query, key, value, past, decay, rate = (*inputs, None, None, None, None, None, None)[:6]
    if query is None or key is None or value is None or len(inputs) > 6 or query.dtype not in FLOATS:
        raise ValueError("expected queries, keys and values of a floating-point type")
    if not len(query.shape) == len(key.shape) == len(value.shape) == 3:
        raise ValueError(f"expected three axes, found {query}, {key} and {value}")
    heads, groups, rows = attributes["heads"], attributes["groups"], query.shape[:2]
    if groups < 1 or heads < 1 or heads % groups:
        raise ValueError(f"expected a multiple of {groups} heads, found {heads}")
    size, width = dims.divide(query.shape[2], heads), dims.divide(value.shape[2], groups)
    if size is None or width is None or key.shape != (*rows, dims.mul(size, groups)) or value.shape[:2] != rows:
        raise ValueError(f"expected keys and values that fit {query}, found {key} and {value}")
    dtypes = {x.dtype for x in (query, key, value, decay, rate) if x is not None}
    state = TensorType(query.dtype if past is None else past.dtype, (rows[0], groups, size, width))
    if len(dtypes) != 1 or state.dtype not in FLOATS or (past is not None and past != state):
        raise ValueError(f"expected operands of one type and a state like {state}, found {sorted(dtypes)} and {past}")
    if decay is not None and decay.shape not in ((*rows, groups), (*rows, dims.mul(size, groups))):
        raise ValueError(f"expected a decay for each head or column, found {decay}")
    if rate is not None and rate.shape not in ((*rows, groups), (*rows, 1)):
        raise ValueError(f"expected a rate for each head, found {rate}")
    return (TensorType(query.dtype, (*rows, dims.mul(width, heads))), state)[: max(1, len(outputs))]


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, heads: int, groups: int, scale: float) -> None:
    """Computed in float32 at least, row by row."""
    import torch

    query, key, value, past, decay, rate = operands(inputs, 6)
    wide = query.dtype if query.dtype == torch.float64 else torch.float32
    batch, rows = query.shape[:2]
    query = query.to(wide).reshape(batch, rows, heads, -1)
    key, value = (x.to(wide).reshape(batch, rows, groups, -1) for x in (key, value))
    if decay is not None:
        decay = torch.exp(decay.to(wide).reshape(batch, rows, groups, -1))[..., None]
    if rate is not None:
        rate = rate.to(wide)[..., None]
    start = torch.zeros(batch, groups, key.shape[3], value.shape[3], dtype=wide)
    state = start if past is None else past.to(wide)
    result = outputs[0].view(batch, rows, heads, -1)
    for row in range(rows):
        if decay is not None:
            state = state * decay[:, row]
        new = value[:, row]
        if rate is not None:
            new = rate[:, row] * (new - torch.einsum("bhkv,bhk->bhv", state, key[:, row]))
        state = state + key[:, row, :, :, None] * new[:, :, None]
        read = state.repeat_interleave(heads // groups, 1)
        result[:, row] = scale * torch.einsum("bhk,bhkv->bhv", query[:, row], read)
    if len(outputs) > 1:
        outputs[1].copy_(state)


def operations(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], attributes: Mapping[str, Any]) -> int:
    """Four for each number of the state in every row, two for each that a query reads."""
    del outputs
    batch, rows, columns = inputs[0]
    width = inputs[2][2] // attributes["groups"]
    return 2 * batch * rows * width * (2 * inputs[1][2] + columns)


OP = tensor_op(
    "linear_attention",
    "y0 = scale * x0 @ state, row by row; state = exp(x4) * state + x1 (x) x5 * (x2 - x1 @ state); y1 = the last state",
    {"heads": int, "groups": int, "scale": float},
    infer,
    reference,
    operations=operations,
)
