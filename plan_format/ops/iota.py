"""Iota: whole numbers at even distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.elementwise import SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """How many there are, and of what type, is what the plan says."""
    del attributes
    if inputs or len(outputs) != 1 or len(outputs[0].shape) != 1 or outputs[0].dtype not in SIGNED:
        raise ValueError("expected one row of whole numbers and no operand")
    return (outputs[0],)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, start: int, step: int) -> None:
    import torch

    del inputs
    outputs[0].copy_(torch.arange(outputs[0].shape[0]) * step + start)


OP = tensor_op("iota", "y0 = `start`, `start` + `step`, ...", {"start": int, "step": int}, infer, reference)
