"""Unfold: what windows over the spatial axes see, so that a convolution is a product, and a pool a reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.indexing import moved
from hjgc.plan_format.ops.shapes import one
from hjgc.plan_format.ops.windows import check_fit, check_windows, counts, unfolded


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, spatial] to [N, C, kernel, windows]: element k of window i along an axis is element i * stride +
    k * dilation of the operand's."""
    del outputs
    x, kernel = one(inputs), attributes["kernel"]
    axes = len(x.shape) - 2
    if not 1 <= axes <= 3 or len(kernel) != axes or min(kernel) < 1:
        raise ValueError(f"expected windows over one to three spatial axes, found {kernel} over {x}")
    windows = {**attributes, "pads": (0,) * 2 * axes}
    check_windows(windows, axes, kernel)
    return (TensorType(x.dtype, (*x.shape[:2], *kernel, *counts(x.shape[2:], kernel, windows))),)


def reference(
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> None:
    """Raises IndexError where a window does not fit."""
    axes = len(kernel)
    windows = {"strides": strides, "dilations": dilations, "pads": (0,) * 2 * axes}
    check_fit(inputs[0], kernel, windows)
    flat = unfolded(moved(inputs[0]), kernel, windows)
    order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    moved(outputs[0]).copy_(flat.unflatten(-1, kernel).permute(order))


OP = tensor_op(
    "unfold",
    "y0 = what windows of `kernel` see of x0, each place in a window along an axis of its own",
    {"kernel": tuple, "strides": tuple, "dilations": tuple},
    infer,
    reference,
)
