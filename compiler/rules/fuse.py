"""Which words of the vocabulary make one launch?"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hjgc.compiler.rules.rule import (
    DOMAIN,
    Match,
    Rule,
    constant_ints,
    is_weight,
    producer,
    scalar_float,
    static_shape,
    transposed,
)


def linear_bias(product: ir.Value) -> ir.Value | None:
    """The bias of a Linear node, if it has one."""
    inputs = producer(product).inputs
    return inputs[2] if len(inputs) > 2 else None


def epsilon_of(norm: ir.Value) -> float:
    return scalar_float(producer(norm).attributes.get("epsilon"), 1e-5)


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


class FusePackedGatedLinear(Rule):
    """The same where one product gives gate and up, side by side."""

    def pattern(self, op: Any, x: Any, norm_weight: Any, weight: Any) -> Any:
        n = op.RmsNorm(x, norm_weight, _domain=DOMAIN, _outputs=["norm"])
        both = _linear(op, n, weight, "both")
        gate, up = op.Split(both, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["gate", "up"])
        return op.Mul(op.Silu(gate, _domain=DOMAIN), up)

    def obstacle(self, m: Match) -> str | None:
        split = producer(m["gate"])
        columns = (static_shape(m["weight"]) or (0, 0))[1 if transposed(m["both"]) else 0]
        sizes = constant_ints(split.inputs[1]) if len(split.inputs) > 1 else None
        halves = columns is not None and sizes in (None, (columns // 2,) * 2) and columns % 2 == 0
        return None if halves and split.attributes.get_int("axis", 0) in (-1, 2) else "gate and up are not halves"

    def replace(self, op: Any, m: Match) -> Any:
        return op.GatedLinear(
            m["x"], m["norm_weight"], m["weight"], None, linear_bias(m["both"]), None,
            epsilon=epsilon_of(m["norm"]), transposed=[transposed(m["both"])], _domain=DOMAIN,
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


RULES: list[type[Rule]] = [
    FuseGatedLinear,
    FusePackedGatedLinear,
    FuseVocabularyLogits,
    FuseResidual,
]
