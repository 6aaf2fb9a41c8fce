"""Rotate: pairs of numbers along the last axis turned by the angle of their row's position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import operands


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [B, H, S, D], or [B, S, H, D] where the heads are not first; of D the first `width` are turned. x1 and x2, the
    cosines and sines, are [B, S, width / 2]; or [P, width / 2], where x3 [B, S] says which row to take."""
    del outputs
    x, cos, sin, positions = (*inputs, None, None, None, None)[:4]
    if x is None or cos is None or sin is None or len(inputs) > 4 or len(x.shape) != 4 or x.dtype not in FLOATS:
        raise ValueError("expected four axes of a floating-point type, cosines and sines")
    width, size = attributes["width"], x.shape[3]
    if width % 2 or width < 2 or not isinstance(size, int) or width > size:
        raise ValueError(f"expected an even number of at most {size} to be turned, found {width}")
    rows = (x.shape[0], x.shape[2 if attributes["heads_first"] else 1])
    if positions is not None and (positions.dtype not in ("int64", "int32") or positions.shape != rows):
        raise ValueError(f"expected a position for each row of {x}, found {positions}")
    angles = (*rows, width // 2) if positions is None else (*cos.shape[:1], width // 2)
    if cos != TensorType(x.dtype, angles) or sin != cos:
        raise ValueError(f"expected cosines and sines that fit {x}, found {cos} and {sin}")
    return (x,)


def reference(
    inputs: Sequence[Any], outputs: Sequence[Any], *, width: int, interleaved: bool, heads_first: bool
) -> None:
    """Computed in float32 at least."""
    import torch

    x, cos, sin, positions = operands(inputs, 4)
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = (each.to(wide).unsqueeze(1 if heads_first else 2) for each in (cos, sin))
    turned = x[..., :width].to(wide)
    left, right = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    parts = (cos * left - sin * right, sin * left + cos * right)
    outputs[0][..., :width].copy_(torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1))
    outputs[0][..., width:].copy_(x[..., width:])


OP = tensor_op(
    "rotate",
    "y0 = x0, pairs of its first `width` columns turned by the angles whose cosines and sines are x1 and x2",
    {"width": int, "interleaved": bool, "heads_first": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 3 * prod(inputs[0]),
)
