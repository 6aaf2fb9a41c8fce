"""Vocabulary logits: normalise the last row of this call and score it against every token."""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import Op, constant, read, write
from hjgc.plan_format.ops.linear import multiply
from hjgc.plan_format.ops.rms_norm import normalise


def reference(x: Any, norm_weight: Any, weight: Any, bias: Any, logits: Any, *, epsilon: float) -> None:
    logits.copy_(multiply(normalise(x[-1:], norm_weight, epsilon), weight, bias))


OP = Op(
    name="vocabulary_logits",
    summary="logits = rms_norm(x[last]) @ weight.T + bias",
    roles=(
        read("x", "M H"),
        constant("norm_weight", "H"),
        constant("weight", "V H"),
        constant("bias", "V", optional=True),
        write("logits", "1 V", "logits"),
    ),
    attributes={"epsilon": float},
    reference=reference,
    flops=lambda d: 2 * d["V"] * d["H"],
    bytes_moved=lambda d, item: (d["V"] * d["H"] + d["H"] + d["V"]) * item,
)
