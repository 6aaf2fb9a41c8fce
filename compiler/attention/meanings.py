"""What do operators mean that ONNX's own references do not cover? Of com.microsoft and of our vocabulary, for one
sequence without padding, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from hjgc.compiler.interface import Array
from hjgc.compiler.rules.rule import DOMAIN, FLOATS

Operands = Sequence[Array | None]
Meaning = Callable[[ir.Node, Operands], Sequence[Array | None]]
MICROSOFT = "com.microsoft"


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x / sqrt(mean(x^2) + epsilon) * weight, over the last axis."""
    x = x.astype(np.float32)
    return (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array, *, interleaved: bool = False) -> Array:
    """Pairs (i, i + half) of the last axis, or (2i, 2i + 1), turned. x: [..., D], cos and sin: broadcast to [..., D/2].
    What lies behind the rotated part stays."""
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    one, two = (turned[..., ::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, axis=-1)
    parts = (one * cos - two * sin, two * cos + one * sin)
    turned = np.stack(parts, axis=-1).reshape(turned.shape) if interleaved else np.concatenate(parts, axis=-1)
    return np.concatenate((turned, rest), axis=-1)


def attend(query: Array, key: Array, value: Array, scale: float, window: int = 0, bias: Array | None = None) -> Array:
    """Causal attention. query: [H, S, D], key and value: [G, T, D] with G dividing H, the last S of T new: [H, S, D].
    A query sees the last `window` keys, itself among them; 0: all. `bias` [1, 1 or H, S, T] is added to the scores."""
    group, (new, total) = query.shape[0] // key.shape[0], (query.shape[1], key.shape[1])
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)
    ahead = np.arange(total)[None, :] - np.arange(total - new, total)[:, None]
    seen = (ahead <= 0) & ((ahead > -window) if window else True)
    scores = (key @ query.transpose(0, 2, 1)).transpose(0, 2, 1) * scale  # keys are many, and lie in rows
    scores = np.where(seen, scores if bias is None else scores + bias[0], -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True) @ value


def split_heads(rows: Array, heads: int) -> Array:
    """[1, S, heads * D] to [heads, S, D]."""
    return rows.reshape(rows.shape[1], heads, -1).transpose(1, 0, 2)


def merge_heads(heads: Array) -> Array:
    """[heads, S, D] to [1, S, heads * D]."""
    return heads.transpose(1, 0, 2).reshape(1, heads.shape[1], -1)


def _cast(node: ir.Node, operands: Operands) -> list[Array]:
    (x,) = operands
    to = ir.DataType(node.attributes["to"].as_int())
    assert x is not None
    return [x.astype(np.float32 if to in FLOATS else to.numpy())]


def _simplified_norm(node: ir.Node, operands: Operands) -> list[Array]:
    x, weight, *_ = operands
    assert x is not None and weight is not None
    return [rms_norm(x, weight, _float(node, "epsilon", 1e-5))]


def _silu(_: ir.Node, operands: Operands) -> list[Array]:
    (x,) = operands
    assert x is not None
    return [x / (1 + np.exp(-x))]


def _rotary_angles(_: ir.Node, operands: Operands) -> list[Array]:
    positions, frequencies = operands
    assert positions is not None and frequencies is not None
    return [positions[..., None].astype(np.float32) * frequencies]


def _rotary_embedding(node: ir.Node, operands: Operands) -> list[Array]:
    """com.microsoft's: positions look rows of the tables up."""
    x, positions, cos, sin, *_ = operands
    assert x is not None and positions is not None and cos is not None and sin is not None
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    count = x.shape[-2]
    rows = np.arange(count) + positions.reshape(-1)[0] if positions.size == 1 else positions.reshape(-1)
    if x.ndim == 4:
        return [rotate(x, cos[rows], sin[rows], interleaved=interleaved)]
    width = node.attributes.get_int("rotary_embedding_dim", 0) or 2 * cos.shape[-1]
    heads = node.attributes.get_int("num_heads", 0) or x.shape[-1] // width
    return [merge_heads(rotate(split_heads(x, heads), cos[rows], sin[rows], interleaved=interleaved))]


def _group_query_attention(node: ir.Node, operands: Operands) -> list[Array]:
    """com.microsoft's, the whole cache given and given back: [1, S, H * D], [1, G, T, D] twice."""
    names = ("query", "key", "value", "past_key", "past_value", "last", "total", "cos", "sin", "positions", "bias",
             "sink", "key_scale", "value_scale", "query_norm", "key_norm")  # fmt: skip
    given: dict[str, Array | None] = dict(zip(names, operands, strict=False))
    if any(given.get(name) is not None for name in ("sink", "key_scale", "value_scale")):
        raise ValueError("a sink or a quantised cache")
    heads, kv_heads = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    query, key, value = _separate(given, heads, kv_heads)
    if (norm := given.get("query_norm")) is not None:
        epsilon = _float(node, "qk_norm_epsilon", 1e-6)
        query, key = rms_norm(query, norm, epsilon), rms_norm(key, _needed(given, "key_norm"), epsilon)
    none = np.zeros((1, kv_heads, 0, query.shape[-1]), np.float32)
    past_key, past_value = (none if (past := given.get(name)) is None else past for name in ("past_key", "past_value"))
    past_key, past_value = past_key[0], past_value[0]
    if node.attributes.get_int("do_rotary", 0):
        rows = np.arange(query.shape[1]) + past_key.shape[1]
        cos, sin = _needed(given, "cos")[rows], _needed(given, "sin")[rows]
        turn = bool(node.attributes.get_int("rotary_interleaved", 0))
        query, key = rotate(query, cos, sin, interleaved=turn), rotate(key, cos, sin, interleaved=turn)
    if _float(node, "softcap", 0.0) or node.attributes.get_int("smooth_softmax", 0) > 0:
        raise ValueError("softcap or smooth_softmax")
    key, value = np.concatenate((past_key, key), axis=1), np.concatenate((past_value, value), axis=1)
    scale = _float(node, "scale", 0.0) or query.shape[-1] ** -0.5
    bias = given.get("bias")
    y = attend(query, key, value, scale, max(node.attributes.get_int("local_window_size", -1), 0), bias)
    return [merge_heads(y), key[None], value[None]]


def _multi_head_attention(node: ir.Node, operands: Operands) -> list[Array | None]:
    """com.microsoft's: query [1, S, H * D], key and value [1, T, H * D] or [1, H, T, D], a bias [1, 1 or H, S, T] added
    to the scores."""
    names = ("query", "key", "value", "bias", "padding", "scores", "past_key", "past_value")
    given: dict[str, Array | None] = dict(zip(names, operands, strict=False))
    if any(given.get(name) is not None for name in ("bias", "padding")) or node.attributes.get_int("unidirectional", 0):
        raise ValueError("a bias, a padding mask or unidirectional")
    heads = node.attributes.get_int("num_heads", 0)
    parts = [_needed(given, name) for name in ("query", "key", "value")]
    query, key, value = (part[0] if part.ndim == 4 else split_heads(part, heads) for part in parts)
    present: list[Array | None] = [None, None]
    if given.get("past_key") is not None:
        key = np.concatenate((_needed(given, "past_key")[0], key), axis=1)
        value = np.concatenate((_needed(given, "past_value")[0], value), axis=1)
        present = [key[None], value[None]]
    scores = query @ key.transpose(0, 2, 1) * (_float(node, "scale", 0.0) or query.shape[-1] ** -0.5)
    scores = scores if given.get("scores") is None else scores + _needed(given, "scores")[0]
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return [merge_heads(shares / shares.sum(axis=-1, keepdims=True) @ value), *present]


def _separate(given: dict[str, Array | None], heads: int, kv_heads: int) -> list[Array]:
    """Query, key and value by heads, also where they come as one."""
    rows = _needed(given, "query")
    if given.get("key") is None:
        size = rows.shape[-1] // (heads + 2 * kv_heads)
        parts = np.split(rows, [heads * size, (heads + kv_heads) * size], axis=-1)
    else:
        parts = [rows, _needed(given, "key"), _needed(given, "value")]
    counts = (heads, kv_heads, kv_heads)
    return [part[0] if part.ndim == 4 else split_heads(part, count) for part, count in zip(parts, counts, strict=True)]


def _needed(given: dict[str, Array | None], name: str) -> Array:
    found = given.get(name)
    if found is None:
        raise ValueError(f"no {name}")
    return found


def _float(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else float(found.as_float())


def has_meaning(node: ir.Node) -> bool:
    """Can it be computed with, by ONNX's reference or by ours?"""
    return node.domain in ("", "ai.onnx", DOMAIN) or (node.domain, node.op_type) in MEANINGS


MEANINGS: dict[tuple[str, str], Meaning] = {
    ("", "Cast"): _cast,
    ("", "SimplifiedLayerNormalization"): _simplified_norm,
    (MICROSOFT, "SimplifiedLayerNormalization"): _simplified_norm,
    (MICROSOFT, "RotaryEmbedding"): _rotary_embedding,
    (MICROSOFT, "GroupQueryAttention"): _group_query_attention,
    (MICROSOFT, "MultiHeadAttention"): _multi_head_attention,
    (DOMAIN, "RmsNorm"): _simplified_norm,
    (DOMAIN, "RotaryAngles"): _rotary_angles,
    (DOMAIN, "Silu"): _silu,
}
