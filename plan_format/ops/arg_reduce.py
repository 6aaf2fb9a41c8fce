"""Arg reduce: where along an axis the largest or smallest number lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The axis stays as 1 where `keep` says so, else it goes."""
    del outputs
    x = one(inputs)
    if attributes["kind"] not in ("max", "min") or x.dtype not in (*FLOATS, *SIGNED, "uint8"):
        raise ValueError(f"expected max or min of numbers, found {attributes['kind']!r} of {x.dtype}")
    axis = axis_of(attributes["axis"], len(x.shape))
    if x.shape[axis] == 0:
        raise ValueError(f"expected numbers along axis {axis}, found {x}")
    return (TensorType("int64", (*x.shape[:axis], *([1] if attributes["keep"] else []), *x.shape[axis + 1 :])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, kind: str, axis: int, keep: bool, last: bool) -> None:
    """Of equal ones the first, or the last."""
    import torch

    x = torch.flip(inputs[0], (axis,)) if last else inputs[0]
    found = (torch.argmax if kind == "max" else torch.argmin)(x, dim=axis, keepdim=keep)
    outputs[0].copy_(x.shape[axis] - 1 - found if last else found)


OP = tensor_op(
    "arg_reduce",
    "y0 = the index along `axis` of the largest or smallest of x0",
    {"kind": str, "axis": int, "keep": bool, "last": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]),
)
