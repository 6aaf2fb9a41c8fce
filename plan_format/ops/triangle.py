"""Triangle: of matrices what lies on one side of a diagonal, 0 elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [..., M, N]; x1, if there is one, counts diagonals to the right of the main one."""
    del outputs, attributes
    x, diagonal = (*inputs, None, None)[:2]
    if x is None or len(inputs) > 2 or len(x.shape) < 2 or x.dtype not in (*FLOATS, *SIGNED, "uint8", "bool"):
        raise ValueError(f"expected matrices of a type that is computed with, found {x}")
    if diagonal is not None and (diagonal.dtype != "int64" or diagonal.shape not in ((), (1,))):
        raise ValueError(f"expected one int64 as a diagonal, found {diagonal}")
    return (x,)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, upper: bool) -> None:
    import torch

    x, diagonal = operands(inputs, 2)
    right = torch.arange(x.shape[-1]) - torch.arange(x.shape[-2])[:, None] - (0 if diagonal is None else diagonal)
    outputs[0].copy_(x.masked_fill(right < 0 if upper else right > 0, 0))


OP = tensor_op(
    "triangle",
    "y0 = what of x0 lies on and above (below) diagonal x1, else 0",
    {"upper": bool},
    infer,
    reference,
)
