"""Cumulate: the sum or product of all numbers up to each along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """Along `axis`; along the one that x1 names, where it is computed at run time."""
    del outputs
    x, axis = (*inputs, None, None)[:2]
    if x is None or len(inputs) > 2 or x.dtype not in (*FLOATS, *SIGNED):
        raise ValueError(f"expected numbers, found {x}")
    if attributes["kind"] not in ("sum", "prod"):
        raise ValueError(f"expected sum or prod, found {attributes['kind']!r}")
    if axis is None:
        axis_of(attributes["axis"], len(x.shape))
    elif axis.dtype not in ("int64", "int32") or axis.shape not in ((), (1,)):
        raise ValueError(f"expected one whole number as an axis, found {axis}")
    return (x,)


def reference(
    inputs: Sequence[Any], outputs: Sequence[Any], *, kind: str, axis: int, exclusive: bool, reverse: bool
) -> None:
    """`exclusive`: without the number itself; `reverse`: from the end. Raises ValueError for an axis that is none."""
    import torch

    x, named = operands(inputs, 2)
    axis = axis_of(axis if named is None else int(named), x.ndim)
    x = torch.flip(x, (axis,)) if reverse else x
    y = (torch.cumsum if kind == "sum" else torch.cumprod)(x, dim=axis, dtype=x.dtype)
    if exclusive and x.shape[axis]:
        first = torch.full_like(x.narrow(axis, 0, 1), 0 if kind == "sum" else 1)
        y = torch.cat((first, y.narrow(axis, 0, x.shape[axis] - 1)), axis)
    outputs[0].copy_(torch.flip(y, (axis,)) if reverse else y)


OP = tensor_op(
    "cumulate",
    "y0 = the sum or product of x0 up to each place along an axis",
    {"kind": str, "axis": int, "exclusive": bool, "reverse": bool},
    infer,
    reference,
)
