"""Convolution over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import numbers
from hjgc.plan_format.ops.windows import check_fit, check_windows, counts, padded


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, spatial] with the filters x1 [M, C / groups, kernel] and perhaps x2 [M]: [N, M, windows]."""
    del outputs
    x, weight, bias = (*inputs, None, None)[:3]
    if x is None or weight is None or len(inputs) > 3 or x.dtype != weight.dtype or x.dtype not in FLOATS:
        raise ValueError(f"expected floats and filters of one type, found {x} and {weight}")
    filters, groups = numbers(weight.shape), attributes["groups"]
    if filters is None or len(filters) != len(x.shape) or not 3 <= len(filters) <= 5 or min(filters) < 1:
        raise ValueError(f"expected filters of one to three spatial axes, found {weight} for {x}")
    if groups < 1 or filters[0] % groups or x.shape[1] != filters[1] * groups:
        raise ValueError(f"expected filters for {groups} groups of channels of {x}, found {weight}")
    if bias is not None and bias != TensorType(x.dtype, filters[:1]):
        raise ValueError(f"expected a bias for each of {filters[0]} channels, found {bias}")
    check_windows(attributes, len(filters) - 2)
    return (TensorType(x.dtype, (x.shape[0], filters[0], *counts(x.shape[2:], filters[2:], attributes))),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], **attributes: Any) -> None:
    """Half floats are computed with in float32. Raises IndexError where a window does not fit."""
    import torch

    y = outputs[0]
    check_fit(inputs[0], inputs[1].shape[2:], attributes)
    if not y.numel():
        return
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    x, weight, bias = (None if x is None else x.to(wide) for x in (*inputs, None)[:3])
    assert x is not None and weight is not None, "as inferred"
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[x.ndim - 3]
    surrounded = padded(x, weight.shape[2:], attributes, y.shape[2:], 0)
    strides, dilations, groups = attributes["strides"], attributes["dilations"], attributes["groups"]
    y.copy_(convolve(surrounded, weight, bias, strides, 0, dilations, groups))


OP = tensor_op(
    "conv",
    "y0 = x0 convolved with the filters x1, plus x2",
    {"strides": tuple, "dilations": tuple, "pads": tuple, "groups": int},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 2 * prod(outputs[0]) * prod(inputs[1][1:]),
)
