"""Columns to image: blocks added up where they lie in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import numbers, one
from hjgc.plan_format.ops.windows import check_windows, counts


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C * elements of a block, blocks]: [N, C, image]."""
    del outputs
    x, block, image = one(inputs), attributes["block"], attributes["image"]
    if x.dtype not in (*FLOATS, *SIGNED) or not block or len(block) != len(image) or min(*block, *image) < 1:
        raise ValueError(f"expected numbers and blocks of an image, found {x.dtype}, {block} and {image}")
    check_windows(attributes, len(block), block)
    places = numbers(counts(image, block, attributes)) or ()
    columns = x.shape[1] if len(x.shape) == 3 else None
    if not isinstance(columns, int) or columns % prod(block) or x.shape[2] != prod(max(0, n) for n in places):
        raise ValueError(f"expected {prod(block)} rows a channel, {places} columns, found {x}")
    return (TensorType(x.dtype, (x.shape[0], columns // prod(block), *image)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], **attributes: Any) -> None:
    """Half floats are added up in float32."""
    import torch

    x, y, block = inputs[0], outputs[0], attributes["block"]
    if not x.numel():  # then nothing bounds how large a block is
        y.zero_()
        return
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    strides, dilations, pads = attributes["strides"], attributes["dilations"], attributes["pads"]
    places = numbers(counts(attributes["image"], block, attributes)) or ()
    many = len(block)
    canvas = torch.zeros(
        (*y.shape[:2], *(size + pads[i] + pads[many + i] for i, size in enumerate(y.shape[2:]))), dtype=wide
    )
    parts = x.reshape(*y.shape[:2], prod(block), *places)
    for number, offsets in enumerate(product(*map(range, block))):
        picked = tuple(
            slice(offset * dilation, offset * dilation + (place - 1) * stride + 1, stride)
            for offset, dilation, stride, place in zip(offsets, dilations, strides, places, strict=True)
        )
        canvas[(slice(None), slice(None), *picked)] += parts[:, :, number]
    inner = tuple(slice(pads[i], pads[i] + size) for i, size in enumerate(y.shape[2:]))
    y.copy_(canvas[(slice(None), slice(None), *inner)])


OP = tensor_op(
    "col2im",
    "y0 = an image of which x0 has the blocks as columns",
    {"image": tuple, "block": tuple, "strides": tuple, "dilations": tuple, "pads": tuple},
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(inputs[0]),
)
