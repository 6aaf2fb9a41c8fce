"""Where do windows lie along the spatial axes that convolutions and pools slide them over?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format import dims
from hjgc.plan_format.ops.shapes import Shape
from hjgc.plan_format.sizes import Expression

Windows = Mapping[str, Any]
"""`strides`, `dilations` and `pads` of the spatial axes: as in ONNX, all pads before, then all behind."""


MOST = (1 << 31) - 1
"""Of a stride, a dilation, a pad, a window: so that 64 bits hold whatever is computed from them."""


def check_windows(windows: Windows, axes: int, kernel: Sequence[int] = ()) -> None:
    """Raises ValueError where they are not those of so many axes, or too large; a `kernel` that a plan names too."""
    strides, dilations, pads = windows["strides"], windows["dilations"], windows["pads"]
    if not len(strides) == len(dilations) == axes or len(pads) != 2 * axes:
        raise ValueError(f"expected strides, dilations and pads of {axes} axes, found {strides}, {dilations}, {pads}")
    if min(*strides, *dilations, 1) < 1 or min(*pads, 0) < 0:
        raise ValueError(f"expected strides and dilations over 0, pads not under, found {strides}, {dilations}, {pads}")
    if max(*strides, *dilations, *pads, *kernel, 1) > MOST:
        raise ValueError(f"expected strides, dilations, pads and windows up to {MOST}, found larger ones")


def counts(spatial: Shape, kernel: Sequence[int], windows: Windows, *, up: bool = False) -> Shape:
    """How many windows there are along each axis; with `up` one that lies inside partly counts, if it begins before
    the pad behind."""
    strides, dilations, pads = windows["strides"], windows["dilations"], windows["pads"]
    many = len(spatial)
    return tuple(
        _count(axis, (kernel[i] - 1) * dilations[i] + 1, strides[i], (pads[i], pads[many + i]), up)
        for i, axis in enumerate(spatial)
    )


def _count(axis: Expression, extent: int, stride: int, pads: tuple[int, int], up: bool) -> Expression:
    left = dims.sub(dims.add(axis, sum(pads)), extent)
    if isinstance(left, int) and left < 0:
        raise ValueError(f"expected windows that fit, found some of {extent} on {left + extent}")
    if not up or stride == 1:
        return dims.add(dims.floor_div(left, stride), 1)
    if not isinstance(axis, int) or not isinstance(left, int):
        raise ValueError("expected axes of fixed sizes for windows that lie inside partly")
    count = -(-left // stride) + 1
    return count - 1 if (count - 1) * stride >= axis + pads[0] else count


def check_fit(x: Any, kernel: Sequence[int], windows: Windows) -> None:
    """Raises IndexError where a window does not fit between the ends."""
    strides, dilations, pads = windows["strides"], windows["dilations"], windows["pads"]
    for i, size in enumerate(x.shape[2:]):
        extent, room = (kernel[i] - 1) * dilations[i] + 1, size + pads[i] + pads[len(strides) + i]
        if extent > room:
            raise IndexError(f"expected windows of {extent} to fit on {room} elements, pads included")


def padded(x: Any, kernel: Sequence[int], windows: Windows, results: Sequence[int], value: float) -> Any:
    """x with pads of `value`, just as far as windows reach."""
    import torch

    strides, dilations, pads = windows["strides"], windows["dilations"], windows["pads"]
    ends: list[int] = []
    for i, size in enumerate(x.shape[2:]):
        reach = (results[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        ends = [pads[i], reach - pads[i] - size, *ends]
    return torch.nn.functional.pad(x, ends, value=value) if any(ends) else x


def unfolded(x: Any, kernel: Sequence[int], windows: Windows) -> Any:
    """The windows of a padded x, flat along the last axis."""
    for i, (size, stride, dilation) in enumerate(zip(kernel, windows["strides"], windows["dilations"], strict=True)):
        x = x.unfold(2 + i, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return x.flatten(2 + len(kernel))
