"""Resize: one axis of a tensor with more or fewer elements, those between read off a line or a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType, Types, tensor_op
from hjgc.plan_format.ops.shapes import axis_of, one

MODES = ("nearest", "linear", "cubic")
PLACES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    "tf_crop_and_resize",
)  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def infer(inputs: Types, outputs: Sequence[TensorType], attributes: Mapping[str, Any]) -> tuple[TensorType]:
    """The size of the axis is what the plan says. `scale` 0 stands for the quotient of the sizes; `outside` is what
    lies outside of a crop from `start` to `end`."""
    x = one(inputs)
    axis = axis_of(attributes["axis"], len(x.shape))
    known = (attributes["mode"] in MODES, attributes["places"] in PLACES, attributes["rounding"] in ROUNDINGS)
    if not all(known) or attributes["scale"] < 0:
        raise ValueError(f"expected one of {', '.join(MODES)} and places that are known, found {attributes}")
    types = (*FLOATS, *SIGNED, "uint8", "bool") if attributes["mode"] == "nearest" else FLOATS
    if x.dtype not in types or len(outputs) != 1 or len(outputs[0].shape) != len(x.shape):
        raise ValueError(f"expected a result like {x} of a type that can be resized")
    size = outputs[0].shape[axis]
    return (TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])),)


def reference(inputs: Sequence[Any], outputs: Sequence[Any], *, axis: int, **attributes: Any) -> None:
    """Places are computed in float32, as ONNX Runtime does. Half floats are computed with in float32. Raises IndexError
    where there is nothing to read."""
    import torch

    x, y = inputs[0], outputs[0]
    if not y.numel():
        return
    count = x.shape[axis]
    if not count:
        raise IndexError("expected an axis to resize, found one of size 0")
    places = _places(torch, y.shape[axis], count, attributes)
    if attributes["mode"] == "nearest":
        found = x.index_select(axis, _rounded(torch, places, attributes["rounding"]).clamp(0, count - 1))
    else:
        taps, weights = (_line if attributes["mode"] == "linear" else _curve)(torch, places, count, attributes)
        found = _weighted(torch, x, axis, taps, weights)
    if attributes["places"] == "tf_crop_and_resize":
        along = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
        beyond = ((places < 0) | (places > count - 1)).reshape(along)
        found = torch.where(beyond, torch.tensor(attributes["outside"], dtype=found.dtype), found)
    y.copy_(found)


def _places(torch: Any, size: int, count: int, attributes: Mapping[str, Any]) -> Any:
    """Where the elements of the result lie in the operand."""
    single = torch.float32
    at = torch.arange(size, dtype=single)
    scale = torch.tensor(attributes["scale"] or size / count, dtype=single)
    match attributes["places"]:
        case "asymmetric":
            return at / scale
        case "align_corners":
            return at * (count - 1) / (size - 1) if size > 1 else at * 0
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if size > 1 else at * 0
        case "half_pixel_symmetric":
            center = count / 2
            return center * (1 - size / (scale * count)) + (at + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            start, end = attributes["start"], attributes["end"]
            if size == 1:
                return at + 0.5 * (start + end) * (count - 1)
            return start * (count - 1) + at * (end - start) * (count - 1) / (size - 1)
        case _:
            return (at + 0.5) / scale - 0.5


def _rounded(torch: Any, places: Any, rounding: str) -> Any:
    places = places.double()
    match rounding:
        case "round_prefer_floor":
            return torch.ceil(places - 0.5).long()
        case "round_prefer_ceil":
            return torch.floor(places + 0.5).long()
        case _:
            return getattr(torch, rounding)(places).long()


def _line(torch: Any, places: Any, count: int, attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two elements beside each place, and their weights."""
    places = places.clamp(0, count - 1)
    low = places.floor().long()
    part = places - low
    return torch.stack([low, (low + 1).clamp(max=count - 1)]), torch.stack([1 - part, part])


def _curve(torch: Any, places: Any, count: int, attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The four elements about each place, and their weights by Keys' cubic convolution."""
    a = attributes["cubic"]
    low = places.floor()
    taps = low.long() + torch.arange(-1, 3)[:, None]
    far = (places - low + torch.tensor([1.0, 0.0, -1.0, -2.0])[:, None]).abs()
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    tail = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = torch.where(far <= 1, near, tail)
    if attributes["inside_only"]:
        weights = torch.where((taps >= 0) & (taps < count), weights, 0)
        weights = weights / weights.sum(0)
    return taps.clamp(0, count - 1), weights


def _weighted(torch: Any, x: Any, axis: int, taps: Any, weights: Any) -> Any:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    along = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    parts = (
        x.index_select(axis, tap).to(wide) * weight.to(wide).reshape(along)
        for tap, weight in zip(taps, weights, strict=True)
    )
    return sum(parts)


OP = tensor_op(
    "resize",
    "y0 = x0 with as many elements along `axis` as y0 has",
    {
        "axis": int,
        "mode": str,
        "places": str,
        "rounding": str,
        "scale": float,
        "start": float,
        "end": float,
        "outside": float,
        "cubic": float,
        "inside_only": bool,
    },
    infer,
    reference,
    operations=lambda inputs, outputs, attributes: 4 * prod(outputs[0]),
)
