"""Layer norm: numbers along the last axes brought to mean 0 and variance 1 (or to mean square 1), scaled and moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, broadcast


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> Sequence[TensorType]:
    """x0 [..., axes], x1 the gain and x2 the bias, if there are any, broadcast to x0. Behind the result may come the
    mean and the inverse deviation, the axes as 1, in float32."""
    x, *affine = inputs
    if x is None or x.dtype not in FLOATS or len(inputs) > 3:
        raise ValueError("expected x, a gain and a bias of a floating-point type")
    for each in affine:
        if each is not None and (each.dtype != x.dtype or broadcast([x.shape, each.shape]) != x.shape):
            raise ValueError(f"expected a gain and a bias that fit {x}, found {each}")
    axis = axis_of(attributes["axis"], len(x.shape))
    moments = TensorType("float32", (*x.shape[:axis], *[1] * (len(x.shape) - axis)))
    return (x, moments, moments)[: max(1, len(outputs))]


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int, epsilon: float, center: bool) -> None:
    """Computed in float32 at least."""
    import torch

    x, *affine = inputs
    wide = x if x.dtype == torch.float64 else x.float()
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = wide.mean(dim=axes, keepdim=True) if center else torch.zeros((), dtype=wide.dtype)
    inverse = torch.rsqrt((wide - mean).square().mean(dim=axes, keepdim=True) + epsilon)
    y = (wide - mean) * inverse
    gain, bias = (*affine, None, None)[:2]
    y = y if gain is None else y * gain
    outputs[0].copy_(y if bias is None else y + bias)
    for output, moment in zip(outputs[1:], (mean, inverse), strict=False):
        output.copy_(moment)


OP = tensor_op(
    "layer_norm",
    "y0 = norm(x0 over the axes from `axis` on) * x1 + x2; y1, y2 = mean and inverse deviation",
    {"axis": int, "epsilon": float, "center": bool},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 8 * prod(inputs[0]),
)
