"""Which words of the vocabulary make one launch?"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from hjgc.compiler.rules.rule import (
    DOMAIN,
    VALUE_KEY,
    Match,
    Rule,
    constant_ints,
    is_op,
    is_weight,
    producer,
    scalar_float,
    static_shape,
    transposed,
)

HEADS_FIRST = [0, 2, 1, 3]


def linear_bias(product: ir.Value) -> ir.Value | None:
    """The bias of a Linear node, if it has one."""
    inputs = producer(product).inputs
    return inputs[2] if len(inputs) > 2 else None


def epsilon_of(norm: ir.Value) -> float:
    return scalar_float(producer(norm).attributes.get("epsilon"), 1e-5)


class AttentionRule(Rule):
    """Norm, the three products, rotation, append to the cache, attention over it, heads side by side again: becomes
    AttentionInputs and Attention."""

    def assemble(self, op: Any, q: Any, k: Any, v: Any, past_key: Any, past_value: Any, mask: Any, shape_y: Any) -> Any:
        """The part of the pattern behind q and k rotated, v split into heads."""
        key = op.Concat(past_key, k, axis=2, _outputs=["key"])
        value = op.Concat(past_value, v, axis=2, _outputs=["value"])
        y = op.Attention(q, key, value, mask, _outputs=["attention"])
        return op.Reshape(op.Transpose(y, perm=HEADS_FIRST), shape_y)

    def obstacle(self, m: Match) -> str | None:
        if not is_op(m["mask"].producer(), "CausalMask"):
            return "its mask is not proved causal"
        attributes = producer(m["attention"]).attributes
        if attributes.get_int("is_causal", 0) or scalar_float(attributes.get("softcap"), 0.0):
            return "attention has is_causal or softcap set"
        for name in ("q", "k"):
            rotary = producer(m[name]).attributes
            if rotary.get_int("interleaved", 0) or rotary.get_int("rotary_embedding_dim", 0):
                return "the rotation is interleaved or partial"
        if not is_angle_pair(m["cos"], m["sin"]):
            return "cosine and sine are not of the positions"
        biases = [linear_bias(m[f"{name}_product"]) for name in "qkv"]
        if len({bias is None for bias in biases}) > 1:
            return "only some of q, k and v have a bias"
        return _cache_obstacle(m) or _shape_obstacle(m)

    def replace(self, op: Any, m: Match) -> Any:
        heads, kv_heads, size = head_counts(m)
        normed = "q_normed" in m
        made = op.AttentionInputs(
            m["x"], m["norm_weight"], m["wq"], m["wk"], m["wv"],
            *(linear_bias(m[f"{name}_product"]) for name in "qkv"),
            m.get("query_norm"), m.get("key_norm"), m["cos"], m["sin"], m["past_key"], m["past_value"],
            epsilon=epsilon_of(m["norm"]),
            head_norm_epsilon=epsilon_of(m["q_normed"]) if normed else 0.0,
            transposed=[transposed(m[f"{name}_product"]) for name in "qkv"],
            heads=heads, kv_heads=kv_heads, head_dim=size,
            _domain=DOMAIN, _outputs=3,
        )  # fmt: skip
        for value, source in zip(made, ("q", "key", "value"), strict=True):
            value.metadata_props[VALUE_KEY] = m[source].name or ""
            value.shape, value.dtype = m[source].shape, m[source].dtype
        scale = scalar_float(producer(m["attention"]).attributes.get("scale"), 1.0 / math.sqrt(size))
        return op.Attention(*made, scale=scale, _domain=DOMAIN)


class FuseAttention(AttentionRule):
    """Query and key are rotated as the products give them."""

    def pattern(
        self, op: Any, x: Any, norm_weight: Any, wq: Any, wk: Any, wv: Any, shape_q: Any, shape_k: Any, shape_v: Any,
        cos: Any, sin: Any, past_key: Any, past_value: Any, mask: Any, shape_y: Any,
    ) -> Any:  # fmt: skip
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        q = op.Transpose(_heads(op, n, wq, shape_q, "q"), perm=HEADS_FIRST)
        k = op.Transpose(_heads(op, n, wk, shape_k, "k"), perm=HEADS_FIRST)
        v = op.Transpose(_heads(op, n, wv, shape_v, "v"), perm=HEADS_FIRST)
        q = op.RotaryEmbedding(q, cos, sin, _outputs=["q"])
        k = op.RotaryEmbedding(k, cos, sin, _outputs=["k"])
        return self.assemble(op, q, k, v, past_key, past_value, mask, shape_y)


class FuseAttentionWithHeadNorms(AttentionRule):
    """The same with a norm over each head of query and key."""

    def pattern(
        self, op: Any, x: Any, norm_weight: Any, wq: Any, wk: Any, wv: Any, shape_q: Any, shape_k: Any, shape_v: Any,
        query_norm: Any, key_norm: Any, cos: Any, sin: Any, past_key: Any, past_value: Any, mask: Any, shape_y: Any,
    ) -> Any:  # fmt: skip
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        q = op.RmsNorm(_heads(op, n, wq, shape_q, "q"), query_norm, _domain=DOMAIN, _outputs=["q_normed"])
        k = op.RmsNorm(_heads(op, n, wk, shape_k, "k"), key_norm, _domain=DOMAIN, _outputs=["k_normed"])
        v = op.Transpose(_heads(op, n, wv, shape_v, "v"), perm=HEADS_FIRST)
        q = op.RotaryEmbedding(op.Transpose(q, perm=HEADS_FIRST), cos, sin, _outputs=["q"])
        k = op.RotaryEmbedding(op.Transpose(k, perm=HEADS_FIRST), cos, sin, _outputs=["k"])
        return self.assemble(op, q, k, v, past_key, past_value, mask, shape_y)

    def obstacle(self, m: Match) -> str | None:
        if epsilon_of(m["q_normed"]) != epsilon_of(m["k_normed"]):
            return "the norms of q and k have different epsilons"
        return super().obstacle(m)


def _heads(op: Any, n: Any, weight: Any, shape: Any, name: str) -> Any:
    return op.Reshape(_linear(op, n, weight, f"{name}_product"), shape)


def head_counts(m: Match) -> tuple[int, int, int]:
    """Heads of the query, heads of the cache, head size: from what the graph computes with, not from notes on it."""
    query, key = constant_ints(m["shape_q"]), constant_ints(m["shape_k"])
    if query is None or key is None or not len(query) == len(key) == 4:
        return 0, 0, 0
    return query[2], key[2], key[3]


def _cache_obstacle(m: Match) -> str | None:
    """Each layer appends to a cache of its own."""
    for name, role in (("past_key", "key"), ("past_value", "value")):
        past = m[name]
        if not past.is_graph_input() or not (past.name or "").startswith("past_key_values."):
            return f"its past {role}s are not an input past_key_values.N.{role}"
        if sum(node.op_type == "Concat" for node, _ in past.uses()) > 1:
            return f"another layer appends to {past.name} too"
    return None


def _shape_obstacle(m: Match) -> str | None:
    heads, kv_heads, size = head_counts(m)
    if min(heads, kv_heads, size) < 1:
        return "heads or head size are not constants"
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        if constant_ints(m[f"shape_{name}"]) not in ((1, -1, count, size), (0, 0, count, size)):
            return f"{name} is not split into {count} heads of {size}"
    for name in ("past_key", "past_value"):
        if (_axis(m[name], 1), _axis(m[name], 3)) != (kv_heads, size):
            return f"{m[name].name} has not {kv_heads} heads of {size}"
    wanted = ((1, -1, heads * size), (0, 0, heads * size))
    return None if constant_ints(m["shape_y"]) in wanted else "the heads are not put side by side again"


class FuseGatedLinear(Rule):
    """Norm, gate and up, activation, product."""

    def pattern(self, op: Any, x: Any, norm_weight: Any, gate_weight: Any, up_weight: Any) -> Any:
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        gate = _linear(op, n, gate_weight, "gate")
        return op.Mul(op.Silu(gate, _domain=DOMAIN), _linear(op, n, up_weight, "up"))

    def obstacle(self, m: Match) -> str | None:
        one = (linear_bias(m["gate"]) is None) != (linear_bias(m["up"]) is None)
        return "only one of gate and up has a bias" if one else None

    def replace(self, op: Any, m: Match) -> Any:
        return op.GatedLinear(
            m["x"], m["norm_weight"], m["gate_weight"], m["up_weight"], linear_bias(m["gate"]), linear_bias(m["up"]),
            epsilon=epsilon_of(m["norm"]), transposed=[transposed(m["gate"]), transposed(m["up"])], _domain=DOMAIN,
        )  # fmt: skip


class FuseResidual(Rule):
    """A product added to what went around it."""

    def pattern(self, op: Any, x: Any, weight: Any, residual: Any) -> Any:
        return op.Add(residual, _linear(op, x, weight, "product"))

    def obstacle(self, m: Match) -> str | None:
        residual, product = m["residual"], m["product"]
        if is_weight(residual):
            return "what is added is a weight, not an activation"
        if residual is product:
            return "it is added to itself"
        if len(producer(product).inputs) > 3:
            return "the product has a residual already"
        return None if static_shape(residual) == static_shape(product) else "what is added has another shape"

    def replace(self, op: Any, m: Match) -> Any:
        product = m["product"]
        flag = transposed(product)
        return op.Linear(m["x"], m["weight"], linear_bias(product), m["residual"], transposed=flag, _domain=DOMAIN)


class FuseVocabularyLogits(Rule):
    """The last norm and the product with the vocabulary."""

    def pattern(self, op: Any, x: Any, norm_weight: Any, weight: Any) -> Any:
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        return _linear(op, n, weight, "logits")

    def obstacle(self, m: Match) -> str | None:
        if len(producer(m["logits"]).inputs) > 3:
            return "the product has a residual"
        return None if m["logits"].is_graph_output() else "its result is not an output of the model"

    def replace(self, op: Any, m: Match) -> Any:
        return op.VocabularyLogits(
            m["x"], m["norm_weight"], m["weight"], linear_bias(m["logits"]),
            epsilon=epsilon_of(m["norm"]), transposed=transposed(m["logits"]), _domain=DOMAIN,
        )  # fmt: skip


def _linear(op: Any, x: Any, weight: Any, name: str) -> Any:
    return op.Linear(x, weight, _allow_other_inputs=True, _domain=DOMAIN, _outputs=[name])


def _axis(value: ir.Value, axis: int) -> int | None:
    shape = static_shape(value)
    return shape[axis] if shape is not None and len(shape) == 4 else None


def is_angle_pair(cos: ir.Value, sin: ir.Value) -> bool:
    """Cos and Sin of the same rotary angles."""
    cosine, sine = cos.producer(), sin.producer()
    if cosine is None or sine is None or (cosine.op_type, sine.op_type) != ("Cos", "Sin"):
        return False
    angles = cosine.inputs[0]
    return angles is sine.inputs[0] and angles is not None and is_op(angles.producer(), "RotaryAngles")


ATTENTION_RULES: list[type[Rule]] = [FuseAttention, FuseAttentionWithHeadNorms]
RULES: list[type[Rule]] = [
    FuseGatedLinear,
    FuseVocabularyLogits,
    FuseResidual,
]
