"""Grid sample: an image read at given places between its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import present

MODES = ("nearest", "bilinear", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, spatial] at x1 [N, any as many axes, axes]: [N, C, any]."""
    del outputs
    types, mode = present(inputs), attributes["mode"]
    if len(types) != 2 or types[0].dtype != types[1].dtype or types[0].dtype not in ("float32", "float64"):
        raise ValueError("expected an image and places, both of float32 or both of float64")
    x, grid = types
    if mode not in MODES or attributes["padding"] not in PADDINGS:
        raise ValueError(f"expected one of {', '.join(MODES)}, found {mode!r}, {attributes['padding']!r}")
    axes = len(x.shape) - 2
    if axes not in (2, 3) or (mode == "bicubic" and axes == 3) or any(axis == 0 for axis in x.shape[1:]):
        raise ValueError(f"expected two spatial axes, or three without cubes, found {x}")
    if len(grid.shape) != axes + 2 or grid.shape[-1] != axes or grid.shape[0] != x.shape[0]:
        raise ValueError(f"expected places in {x}, found {grid}")
    return (TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, mode: str, padding: str, align: bool) -> None:
    import torch

    if outputs[0].numel():
        found = torch.nn.functional.grid_sample(*inputs, mode=mode, padding_mode=padding, align_corners=align)
        outputs[0].copy_(found)


OP = tensor_op(
    "grid_sample",
    "y0 = x0 at the places x1, from -1 to 1 along every axis",
    {"mode": str, "padding": str, "align": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 16 * prod(outputs[0]),
)
