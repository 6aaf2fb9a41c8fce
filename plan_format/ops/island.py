"""Island: a sub-model that ONNX Runtime runs, since no launch of ours computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from hjgc.plan_format.ops.declaration import Op, TensorType, Types


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """What it gives is what the plan says; the runtime compares it with what comes."""
    del inputs, attributes
    return outputs


def reference(*operands: object) -> NoReturn:
    """Islands have no reference: the runtime hands them to ONNX Runtime."""
    raise NotImplementedError


OP = Op(
    name="island",
    summary="y0, y1, ... = a part of the ONNX model, run by ONNX Runtime",
    roles=(),
    attributes={},
    reference=reference,
    flops=lambda d: 0,
    bytes_moved=lambda d, item: 0,
    infer=infer,
    island=True,
)
