"""Which words of the vocabulary make one launch?"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from hjgc.compiler.rules.rule import (
    DOMAIN,
    VALUE_KEY,
    Rule,
    constant_ints,
    is_op,
    is_weight,
    scalar_float,
    static_shape,
)

HEADS_FIRST = [0, 2, 1, 3]


def producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def linear_bias(product: ir.Value) -> ir.Value | None:
    """The bias of a Linear node, if it has one."""
    inputs = producer(product).inputs
    return inputs[2] if len(inputs) > 2 else None


def epsilon_of(norm: ir.Value) -> float:
    return scalar_float(producer(norm).attributes.get("epsilon"), 1e-5)


class FuseAttention(Rule):
    """Norm, the three products, rotation, append to the cache, attention over it, heads side by side again: becomes
    AttentionInputs and Attention."""

    head_norms = False

    def pattern(
        self, op: Any, x: Any, norm_weight: Any, wq: Any, wk: Any, wv: Any, shape_q: Any, shape_k: Any, shape_v: Any,
        cos: Any, sin: Any, past_key: Any, past_value: Any, mask: Any, shape_y: Any,
    ) -> Any:  # fmt: skip
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        q = self._rotated(op, n, wq, shape_q, cos, sin, "q")
        k = self._rotated(op, n, wk, shape_k, cos, sin, "k")
        v = op.Transpose(op.Reshape(_linear(op, n, wv, "v_product"), shape_v), perm=HEADS_FIRST, _outputs=["v"])
        key = op.Concat(past_key, k, axis=2, _outputs=["key"])
        value = op.Concat(past_value, v, axis=2, _outputs=["value"])
        y = op.Attention(q, key, value, mask, _outputs=["attention"])
        return op.Reshape(op.Transpose(y, perm=HEADS_FIRST), shape_y)

    def _rotated(self, op: Any, n: Any, weight: Any, shape: Any, cos: Any, sin: Any, name: str) -> Any:
        x = op.Reshape(_linear(op, n, weight, f"{name}_product"), shape)
        return op.RotaryEmbedding(op.Transpose(x, perm=HEADS_FIRST), cos, sin, _outputs=[name])

    def obstacle(self, **m: Any) -> str | None:
        if not is_op(m["mask"].producer(), "CausalMask"):
            return "its mask is not proved causal"
        attributes = producer(m["attention"]).attributes
        if attributes.get_int("is_causal", 0) or scalar_float(attributes.get("softcap"), 0.0):
            return "attention has is_causal or softcap set"
        for value in (m["q"], m["k"]):
            rotary = producer(value).attributes
            if rotary.get_int("interleaved", 0) or rotary.get_int("rotary_embedding_dim", 0):
                return "the rotation is interleaved or partial"
        if not is_angle_pair(m["cos"], m["sin"]):
            return "cosine and sine are not of the positions"
        for name in ("past_key", "past_value"):
            if not m[name].is_graph_input():
                return f"{name} is not a graph input"
        biases = [linear_bias(m[f"{name}_product"]) for name in "qkv"]
        if len({bias is None for bias in biases}) > 1:
            return "only some of q, k and v have a bias"
        return self._shape_obstacle(**m)

    def _shape_obstacle(self, **m: Any) -> str | None:
        heads, kv_heads, size = _axis(m["q"], 1), _axis(m["past_key"], 1), _axis(m["past_key"], 3)
        if heads is None or kv_heads is None or size is None:
            return "heads or head size are not constants"
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            if constant_ints(m[f"shape_{name}"]) not in ((1, -1, count, size), (0, 0, count, size)):
                return f"{name} is not split into {count} heads of {size}"
        wanted = ((1, -1, heads * size), (0, 0, heads * size))
        return None if constant_ints(m["shape_y"]) in wanted else "the heads are not put side by side again"

    def replace(self, op: Any, **m: Any) -> Any:
        heads, kv_heads, size = _axis(m["q"], 1), _axis(m["past_key"], 1), _axis(m["past_key"], 3)
        assert heads is not None and kv_heads is not None and size is not None
        query_norm, key_norm = m.get("query_norm"), m.get("key_norm")
        query, key, value = op.AttentionInputs(
            m["x"], m["norm_weight"], m["wq"], m["wk"], m["wv"],
            *(linear_bias(m[f"{name}_product"]) for name in "qkv"),
            query_norm, key_norm, m["cos"], m["sin"], m["past_key"], m["past_value"],
            epsilon=epsilon_of(m["norm"]),
            head_norm_epsilon=epsilon_of(m["q_normed"]) if self.head_norms else 0.0,
            transposed=[transposed(m[f"{name}_product"]) for name in "qkv"],
            heads=heads, kv_heads=kv_heads, head_dim=size,
            _domain=DOMAIN, _outputs=3,
        )  # fmt: skip
        for made, source in ((query, "q"), (key, "key"), (value, "value")):
            made.metadata_props[VALUE_KEY] = m[source].name or ""
        scale = scalar_float(producer(m["attention"]).attributes.get("scale"), 1.0 / math.sqrt(size))
        return op.Attention(query, key, value, scale=scale, _domain=DOMAIN)


class FuseAttentionWithHeadNorms(FuseAttention):
    """The same with a norm over each head of q and k."""

    head_norms = True

    def pattern(
        self, op: Any, x: Any, norm_weight: Any, wq: Any, wk: Any, wv: Any, shape_q: Any, shape_k: Any, shape_v: Any,
        query_norm: Any, key_norm: Any, cos: Any, sin: Any, past_key: Any, past_value: Any, mask: Any, shape_y: Any,
    ) -> Any:  # fmt: skip
        self._weights = {"q": query_norm, "k": key_norm}
        return super().pattern(
            op, x, norm_weight, wq, wk, wv, shape_q, shape_k, shape_v, cos, sin, past_key, past_value, mask, shape_y
        )

    def _rotated(self, op: Any, n: Any, weight: Any, shape: Any, cos: Any, sin: Any, name: str) -> Any:
        x = op.Reshape(_linear(op, n, weight, f"{name}_product"), shape)
        x = op.RmsNorm(x, self._weights[name], _domain=DOMAIN, _outputs=[f"{name}_normed"])
        return op.RotaryEmbedding(op.Transpose(x, perm=HEADS_FIRST), cos, sin, _outputs=[name])

    def obstacle(self, **m: Any) -> str | None:
        if epsilon_of(m["q_normed"]) != epsilon_of(m["k_normed"]):
            return "the norms of q and k have different epsilons"
        return super().obstacle(**m)


class FuseGatedLinear(Rule):
    """Norm, gate and up, activation, product."""

    def pattern(self, op: Any, x: Any, norm_weight: Any, gate_weight: Any, up_weight: Any) -> Any:
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        gate = _linear(op, n, gate_weight, "gate")
        return op.Mul(op.Silu(gate, _domain=DOMAIN), _linear(op, n, up_weight, "up"))

    def obstacle(self, gate: ir.Value, up: ir.Value, **_: Any) -> str | None:
        one = (linear_bias(gate) is None) != (linear_bias(up) is None)
        return "only one of gate and up has a bias" if one else None

    def replace(self, op: Any, **m: Any) -> Any:
        return op.GatedLinear(
            m["x"], m["norm_weight"], m["gate_weight"], m["up_weight"], linear_bias(m["gate"]), linear_bias(m["up"]),
            epsilon=epsilon_of(m["norm"]), transposed=[transposed(m["gate"]), transposed(m["up"])], _domain=DOMAIN,
        )  # fmt: skip


class FuseResidual(Rule):
    """A product added to what went around it."""

    def pattern(self, op: Any, x: Any, weight: Any, residual: Any) -> Any:
        return op.Add(residual, _linear(op, x, weight, "product"))

    def obstacle(self, residual: ir.Value, product: ir.Value, **_: Any) -> str | None:
        if is_weight(residual):
            return "what is added is a weight, not an activation"
        if len(producer(product).inputs) > 3:
            return "the product has a residual already"
        return None if static_shape(residual) == static_shape(product) else "what is added has another shape"

    def replace(self, op: Any, x: ir.Value, weight: ir.Value, residual: ir.Value, product: ir.Value, **_: Any) -> Any:
        return op.Linear(
            x, weight, linear_bias(product), residual, transposed=transposed(product), _domain=DOMAIN
        )  # fmt: skip


class FuseResidualLast(FuseResidual):
    def pattern(self, op: Any, x: Any, weight: Any, residual: Any) -> Any:
        return op.Add(_linear(op, x, weight, "product"), residual)


class FuseVocabularyLogits(Rule):
    """The last norm and the product with the vocabulary."""

    def pattern(self, op: Any, x: Any, norm_weight: Any, weight: Any) -> Any:
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        return _linear(op, n, weight, "logits")

    def obstacle(self, logits: ir.Value, **_: Any) -> str | None:
        if len(producer(logits).inputs) > 3:
            return "the product has a residual"
        return None if logits.is_graph_output() else "its result is not an output of the model"

    def replace(self, op: Any, **m: Any) -> Any:
        return op.VocabularyLogits(
            m["x"], m["norm_weight"], m["weight"], linear_bias(m["logits"]),
            epsilon=epsilon_of(m["norm"]), transposed=transposed(m["logits"]), _domain=DOMAIN,
        )  # fmt: skip


def _linear(op: Any, x: Any, weight: Any, name: str) -> Any:
    return op.Linear(x, weight, _allow_other_inputs=True, _domain=DOMAIN, _outputs=[name])


def transposed(product: ir.Value) -> int:
    return producer(product).attributes.get_int("transposed", 0)


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


RULES: list[type[Rule]] = [
    FuseAttention,
    FuseAttentionWithHeadNorms,
    FuseGatedLinear,
    FuseVocabularyLogits,
    FuseResidual,
    FuseResidualLast,
]
