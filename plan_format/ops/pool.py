"""Pool: one number out of each window over the spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import one
from hjgc.plan_format.ops.windows import check_fit, check_windows, counts, padded, unfolded

KINDS = ("max", "average", "lp")


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """x0 [N, C, spatial]: [N, C, windows]. The average counts pads where `count_pads` says so; `power` is that of the
    norm `lp`; `up` counts windows that lie inside partly."""
    del outputs
    x, kind, kernel = one(inputs), attributes["kind"], attributes["kernel"]
    types = (*FLOATS, *SIGNED, "uint8") if kind == "max" else FLOATS
    if kind not in KINDS or x.dtype not in types or attributes["power"] < 1:
        raise ValueError(f"expected one of {', '.join(KINDS)} of a type that has it, found {kind!r} of {x.dtype}")
    if len(kernel) != len(x.shape) - 2 or not kernel or min(kernel) < 1:
        raise ValueError(f"expected windows over the spatial axes of {x}, found {kernel}")
    check_windows(attributes, len(kernel), kernel)
    spatial = counts(x.shape[2:], kernel, attributes, up=attributes["up"])
    return (TensorType(x.dtype, (*x.shape[:2], *spatial)),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], **attributes: Any) -> None:
    """Half floats are computed with in float32. Raises IndexError where a window does not fit."""
    import torch

    x, y = inputs[0], outputs[0]
    check_fit(x, attributes["kernel"], attributes)
    if not y.numel():
        return
    if attributes["kind"] == "max":
        y.copy_(_greatest(torch, x, attributes, y.shape[2:]))
        return
    x = x if x.dtype == torch.float64 else x.float()
    if attributes["kind"] == "lp":
        power = attributes["power"]
        total = _sum(torch, x.abs() if power == 1 else x.abs() ** power, attributes, y.shape[2:])
        y.copy_(total if power == 1 else total ** (1 / power))
    else:
        y.copy_(_sum(torch, x, attributes, y.shape[2:]) / _counted(torch, x, attributes, y.shape[2:]))


def _greatest(torch: Any, x: Any, attributes: Mapping[str, Any], results: Sequence[int]) -> Any:
    kernel, floating = attributes["kernel"], x.dtype.is_floating_point
    lowest = float("-inf") if floating else torch.iinfo(x.dtype).min
    surrounded = padded(x, kernel, attributes, results, lowest)
    if not floating or len(kernel) > 3:
        return unfolded(surrounded, kernel, attributes).amax(-1)
    functional = torch.nn.functional
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    return pool(surrounded, kernel, attributes["strides"], 0, attributes["dilations"])


def _sum(torch: Any, x: Any, attributes: Mapping[str, Any], results: Sequence[int]) -> Any:
    kernel = attributes["kernel"]
    surrounded = padded(x, kernel, attributes, results, 0)
    if len(kernel) not in (2, 3) or max(attributes["dilations"]) > 1:
        return unfolded(surrounded, kernel, attributes).sum(-1)
    functional = torch.nn.functional
    pool = (functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 2]
    return pool(surrounded, kernel, attributes["strides"], divisor_override=1)


def _counted(torch: Any, x: Any, attributes: Mapping[str, Any], results: Sequence[int]) -> Any:
    """How many elements of each window count: those inside, or inside of the pads."""
    kernel, pads = attributes["kernel"], attributes["pads"]
    total = torch.ones((), dtype=x.dtype)
    for i, size in enumerate(x.shape[2:]):
        low, high = (-pads[i], size + pads[i + len(kernel)]) if attributes["count_pads"] else (0, size)
        places = torch.arange(results[i])[:, None] * attributes["strides"][i] - pads[i]
        places = places + torch.arange(kernel[i]) * attributes["dilations"][i]
        inside = ((places >= low) & (places < high)).sum(-1)
        total = total[..., None] * inside
    return total


OP = tensor_op(
    "pool",
    "y0 = the maximum, average or norm of each window of x0",
    {
        "kind": str,
        "kernel": tuple,
        "strides": tuple,
        "dilations": tuple,
        "pads": tuple,
        "up": bool,
        "count_pads": bool,
        "power": int,
    },
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: prod(outputs[0]) * prod(attributes["kernel"]),
)
