"""Affine grid: where the pixels of an image come from, by a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, axes, axes + 1]: [N, spatial, axes] with the spatial sizes that the plan says."""
    del attributes
    x = one(inputs)
    axes = len(outputs[0].shape) - 2 if len(outputs) == 1 else 0
    if x.dtype not in ("float32", "float64") or axes not in (2, 3) or x.shape[1:] != (axes, axes + 1):
        raise ValueError(f"expected matrices of two or three axes, found {x}")
    return (TensorType(x.dtype, (x.shape[0], *outputs[0].shape[1:-1], axes)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, align: bool) -> None:
    import torch

    theta, y = inputs[0], outputs[0]
    if y.numel():
        size = [y.shape[0], 1, *y.shape[1:-1]]
        y.copy_(torch.nn.functional.affine_grid(theta, size, align_corners=align))


OP = tensor_op(
    "affine_grid",
    "y0 = the places that the matrices x0 make of an even grid from -1 to 1",
    {"align": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 8 * prod(outputs[0]),
)
