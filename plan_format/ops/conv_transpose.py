"""Transposed convolution over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import numbers
from hjgc.plan_format.ops.windows import check_windows
from hjgc.plan_format.sizes import Expression


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, spatial] with the filters x1 [C, M / groups, kernel] and perhaps x2 [M]: [N, M, spatial], each element
    of x0 a filter, `strides` apart; `pads` are cut off the ends, `extra` elements are behind."""
    del outputs
    x, weight, bias = (*inputs, None, None)[:3]
    if x is None or weight is None or len(inputs) > 3 or x.dtype != weight.dtype or x.dtype not in FLOATS:
        raise ValueError(f"expected floats and filters of one type, found {x} and {weight}")
    filters, groups = numbers(weight.shape), attributes["groups"]
    if filters is None or len(filters) != len(x.shape) or not 3 <= len(filters) <= 5 or min(filters) < 1:
        raise ValueError(f"expected filters of one to three spatial axes, found {weight} for {x}")
    if groups < 1 or filters[0] % groups or x.shape[1] != filters[0]:
        raise ValueError(f"expected filters for {groups} groups of channels of {x}, found {weight}")
    channels = filters[1] * groups
    if bias is not None and bias != TensorType(x.dtype, (channels,)):
        raise ValueError(f"expected a bias for each of {channels} channels, found {bias}")
    check_windows(attributes, len(filters) - 2)
    if len(attributes["extra"]) != len(filters) - 2 or min(attributes["extra"]) < 0:
        raise ValueError(f"expected elements behind {len(filters) - 2} axes, found {attributes['extra']}")
    spatial = (_size(axis, filters[2 + i], i, attributes) for i, axis in enumerate(x.shape[2:]))
    return (TensorType(x.dtype, (x.shape[0], channels, *spatial)),)


def _size(axis: Expression, kernel: int, place: int, attributes: Mapping[str, Any]) -> Expression:
    strides, pads, extra = attributes["strides"], attributes["pads"], attributes["extra"]
    cut = pads[place] + pads[place + len(strides)]
    rest = (kernel - 1) * attributes["dilations"][place] + 1 + extra[place] - cut - strides[place]
    return dims.add(dims.mul(axis, strides[place]), rest)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], **attributes: Any) -> None:
    """Half floats are computed with in float32."""
    import torch

    y = outputs[0]
    if not y.numel():
        return
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    x, weight, bias = (None if x is None else x.to(wide) for x in (*inputs, None)[:3])
    assert x is not None and weight is not None, "as inferred"
    pads = attributes["pads"]
    convolve = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[x.ndim - 3]
    whole = convolve(x, weight, None, attributes["strides"], 0, 0, attributes["groups"], attributes["dilations"])
    ends: list[int] = []
    for i, size in enumerate(y.shape[2:]):
        ends = [-pads[i], size + pads[i] - whole.shape[2 + i], *ends]
    y.copy_(torch.nn.functional.pad(whole, ends))
    if bias is not None:
        y.add_(bias.reshape(-1, *[1] * (x.ndim - 2)))


OP = tensor_op(
    "conv_transpose",
    "y0 = the filters x1 added up, each times an element of x0, plus x2",
    {"strides": tuple, "dilations": tuple, "pads": tuple, "extra": tuple, "groups": int},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 2 * prod(inputs[0]) * prod(inputs[1][1:]),
)
