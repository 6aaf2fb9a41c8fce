"""Shape of: the sizes of some of an operand's axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The axes from `start` to before `end`."""
    del outputs
    x, start, end = one(inputs), attributes["start"], attributes["end"]
    if not 0 <= start <= end <= len(x.shape):
        raise ValueError(f"expected axes of {x}, found {start} to {end}")
    return (TensorType("int64", (end - start,)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, start: int, end: int) -> None:
    import torch

    outputs[0].copy_(torch.tensor(tuple(inputs[0].shape[start:end]), dtype=torch.int64))


OP = tensor_op(
    "shape_of", "y0 = the sizes of x0's axes from `start` to `end`", {"start": int, "end": int}, infer, reference
)
