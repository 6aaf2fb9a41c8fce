"""Concatenate: operands behind each other along one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, present


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    del outputs
    types = present(inputs)
    axis = axis_of(attributes["axis"], len(types[0].shape))
    if len({len(x.shape) for x in types}) != 1:
        raise ValueError(f"expected operands of as many axes, found {', '.join(map(str, types))}")
    rest = {(x.dtype, x.shape[:axis], x.shape[axis + 1 :]) for x in types}
    if len(rest) != 1:
        raise ValueError(f"expected shapes that differ along axis {axis} alone, found {', '.join(map(str, types))}")
    total = reduce(dims.add, (x.shape[axis] for x in types))
    return (TensorType(types[0].dtype, (*types[0].shape[:axis], total, *types[0].shape[axis + 1 :])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int) -> None:
    place = 0
    for x in inputs:
        outputs[0].narrow(axis, place, x.shape[axis]).copy_(x)
        place += x.shape[axis]


OP = tensor_op("concat", "y0 = x0, x1, ... behind each other along `axis`", {"axis": int}, infer, reference)
