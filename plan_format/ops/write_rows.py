"""Write rows: a tensor with new slices in a row along an axis, from a place on that each sequence has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [B, ..., axis, ...] with x1, equal but for the axis, from places x2 [B] on, or from 0."""
    del outputs
    x, new, places = (*inputs, None, None, None)[:3]
    if x is None or new is None or len(inputs) > 3 or x.dtype not in (*FLOATS, *SIGNED, "uint8", "bool"):
        raise ValueError(f"expected a tensor and what is new in it, found {x} and {new}")
    axis = axis_of(attributes["axis"], len(x.shape))
    if axis == 0 or len(new.shape) != len(x.shape):
        raise ValueError(f"expected an axis behind the first, found {axis} of {x} and {new}")
    if new != TensorType(x.dtype, (*x.shape[:axis], new.shape[axis], *x.shape[axis + 1 :])):
        raise ValueError(f"expected what fits into {x}, found {new}")
    if places is not None and places != TensorType("int64", (x.shape[0],)):
        raise ValueError(f"expected an int64 for each sequence of {x}, found {places}")
    return (x,)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int, circular: bool) -> None:
    """`circular`: past the end it goes on at the front. Raises IndexError for a place outside."""
    import torch

    x, new, places = operands(inputs, 3)
    whole, count = x.shape[axis], new.shape[axis]
    places = torch.zeros(x.shape[0], dtype=torch.int64) if places is None else places
    rows = places[:, None] + torch.arange(count)
    rows = torch.remainder(rows, whole) if circular else rows
    if count > whole or (rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < whole):
        raise IndexError(f"expected {count} places of 0 to {whole - 1}, found {places.tolist()} and on")
    outputs[0].copy_(x)
    outputs[0].movedim(axis, 1)[torch.arange(x.shape[0])[:, None], rows] = new.movedim(axis, 1)


OP = tensor_op(
    "write_rows",
    "y0 = x0 with x1 along `axis`, from x2 on",
    {"axis": int, "circular": bool},
    infer,
    reference,
)
