"""Which ONNX nodes slide windows over spatial axes: convolutions, pools?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hjgc.compiler.function.filling import filled
from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.function.products import product
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import numbers
from hjgc.plan_format.ops.windows import check_windows, counts
from hjgc.plan_format.sizes import MAX_PARTS, Expression, walk
from hjgc.plan_format.structs import Attribute

MOST_SEEN = 1 << 26
"""Elements that are held unfolded: of a ResNet-50 it is 2 million at most, of a VGG 29."""
MOST_PARTS = MAX_PARTS // 2
"""Of how many elements windows see, so that what kernels are told of them has fewer than a plan may hold."""


def _windows(node: Lowering, x: Tensor, kernel: Sequence[int]) -> dict[str, Attribute]:
    """Strides, dilations and pads, as the node says or its `auto_pad` finds."""
    axes = len(kernel)
    strides = node.integers("strides") or (1,) * axes
    dilations = node.integers("dilations") or (1,) * axes
    mode = node.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = node.integers("pads") or (0,) * 2 * axes
    elif mode == "VALID":
        pads = (0,) * 2 * axes
    elif len(x.shape) != axes + 2 or len(strides) != axes or len(dilations) != axes:
        raise ValueError(f"expected strides and dilations of {axes} axes, found others")
    else:
        extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        totals = [_same(*given) for given in zip(x.shape[2:], extents, strides, strict=True)]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
    return {"strides": strides, "dilations": dilations, "pads": pads}


def _same(axis: Expression, extent: int, stride: int) -> int:
    """Pads in all, so that there are as many windows as strides."""
    if stride == 1:
        return extent - 1
    if not isinstance(axis, int):
        raise ValueError("expected strides of 1, or pads as numbers, along an axis without a fixed size")
    total = (-(-axis // stride) - 1) * stride + extent - axis
    if total < 0:
        raise ValueError("expected windows that reach each other, found strides past them")
    return total


def _filters(node: Lowering) -> tuple[Tensor, tuple[int, ...]]:
    weight = node.x(1)
    kernel = numbers(weight.shape[2:])
    if not kernel or (node.integers("kernel_shape") or kernel) != kernel:
        raise node.refuse("its filters are not of the size that it says")
    return weight, kernel


@lowers("Conv")
def _conv(node: Lowering) -> None:
    node.give(convolved(node))


def convolved(node: Lowering) -> Tensor:
    """What a Conv gives: for a GPU by a product of its filters and what windows see."""
    x, (weight, kernel) = node.x(0), _filters(node)
    windows, groups = _windows(node, x, kernel), node.integer("group", 1)
    if node.context.targets:
        return _by_product(node, x, weight, windows, groups)
    return node.emit("conv", [x, weight, node.optional(2)], {**windows, "groups": groups})


def _by_product(node: Lowering, x: Tensor, weight: Tensor, windows: dict[str, Attribute], groups: int) -> Tensor:
    """Filters [M, C / groups * places] times [N, C / groups * places, windows], for each group."""
    filters, each, *kernel = weight.shape
    parts = dims.divide(filters, groups) if groups > 0 else None
    if parts is None or x.shape[1] != dims.mul(each, groups):
        raise node.refuse(f"its filters are not those of {groups} groups")
    bias, batch = node.optional(2), x.shape[0]
    seen = _seen(node, x, kernel, windows, 0.0)
    places = seen.shape[2 + len(kernel) :]
    depth, across = dims.mul(each, dims.product(kernel)), dims.product(places)
    split = () if groups == 1 else (groups,)
    seen = node.view(seen, (batch, *split, depth, across))
    added = None if bias is None else node.view(bias, (*split, parts, 1))
    matrices = node.view(weight, (*split, parts, depth))
    if groups > 1 and batch != 1:  # all images of a group side by side: kernels repeat no part of a batch
        seen = node.view(
            node.emit("transpose", [seen], {"axes": (1, 2, 0, 3)}), (groups, depth, dims.mul(batch, across))
        )
        made = node.emit("matmul", [matrices, seen, added], product())
        apart = node.view(made, (groups, parts, batch, across))
        return node.view(node.emit("transpose", [apart], {"axes": (2, 0, 1, 3)}), (batch, filters, *places))
    return node.view(node.emit("matmul", [matrices, seen, added], product()), (batch, filters, *places))


def _ints(windows: dict[str, Attribute], name: str) -> tuple[int, ...]:
    found = windows[name]
    assert isinstance(found, tuple), "as the op declares it"
    return tuple(int(number) for number in found)


def _reached(node: Lowering, x: Tensor, windows: dict[str, Attribute]) -> tuple[int, ...]:
    """The pads of windows of which the last may lie inside partly: behind, as far as it reaches."""
    kernel, strides, dilations, pads = (_ints(windows, name) for name in ("kernel", "strides", "dilations", "pads"))
    found, spatial = numbers(counts(x.shape[2:], kernel, windows, up=True)), numbers(x.shape[2:])
    if found is None or spatial is None:
        raise node.refuse("how far its windows reach depends on a size")
    before = pads[: len(kernel)]
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    ends = [(count - 1) * stride + extent for count, stride, extent in zip(found, strides, extents, strict=True)]
    behind = [max(0, end - low - size) for end, low, size in zip(ends, before, spatial, strict=True)]
    return (*before, *behind)


def _seen(
    node: Lowering, x: Tensor, kernel: Sequence[Expression], windows: dict[str, Attribute], outside: float
) -> Tensor:
    """What each window sees; `outside`: the number in its pads."""
    pads, whole = _ints(windows, "pads"), numbers(kernel)
    assert whole is not None, "as many as there are filters or windows"
    check_windows(windows, len(whole), whole)
    if any(pads):
        before = (0, 0, *pads[: len(whole)])
        after = (0, 0, *pads[len(whole) :])
        shape = [dims.add(axis, low + high) for axis, low, high in zip(x.shape, before, after, strict=True)]
        value = None if outside == 0 else filled(node, x.dtype, outside, (1,))
        x = node.emit("pad", [x, value], {"mode": "constant", "before": before}, [TensorType(x.dtype, tuple(shape))])
    attributes = {name: windows[name] for name in ("strides", "dilations")}
    if set(whole) == {1} and windows["strides"] == (1,) * len(whole):
        return node.view(x, (*x.shape[:2], *whole, *x.shape[2:]))
    seen = node.emit("unfold", [x], {"kernel": whole, **attributes})
    count = dims.product(seen.shape)
    if sum(1 for _ in walk(count)) > MOST_PARTS:
        raise node.refuse("its open axes multiply to sizes of too many parts")
    if node.context.limits(count)[1] > MOST_SEEN:
        raise node.refuse(f"its windows see more than {MOST_SEEN} elements")
    return seen


@lowers("ConvTranspose")
def _conv_transpose(node: Lowering) -> None:
    x, (weight, kernel) = node.x(0), _filters(node)
    axes = len(kernel)
    strides, dilations = node.integers("strides") or (1,) * axes, node.integers("dilations") or (1,) * axes
    extra = node.integers("output_padding") or (0,) * axes
    if not len(strides) == len(dilations) == len(extra) == axes == len(x.shape) - 2:
        raise ValueError(f"expected strides, dilations and pads of {axes} axes, found others")
    pads, extra = _ends(node, x, kernel, strides, dilations, extra)
    attributes: dict[str, Attribute] = {
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "extra": extra,
        "groups": node.integer("group", 1),
    }
    node.give(node.emit("conv_transpose", [x, weight, node.optional(2)], attributes))


def _ends(
    node: Lowering, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    extra: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """What is cut off the ends and what is behind, as the node says or so that the result has the shape it says."""
    axes, mode = len(kernel), node.text("auto_pad", "NOTSET")
    wanted: Sequence[Expression] | None = node.integers("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        given = node.integers("pads") if mode == "NOTSET" else None
        return given or (0,) * 2 * axes, extra
    if wanted is None:
        wanted = [dims.mul(axis, stride) for axis, stride in zip(x.shape[2:], strides, strict=True)]
    wanted = wanted[-axes:]
    totals: list[int] = []
    for i, axis in enumerate(x.shape[2:]):
        rest = (kernel[i] - 1) * dilations[i] + 1 + extra[i] - strides[i]
        total = dims.sub(dims.add(dims.mul(axis, strides[i]), rest), wanted[i])
        if not isinstance(total, int):
            raise node.refuse("what is cut off its ends depends on a size")
        if total < 0 and (node.integers("output_shape") is None or -total >= strides[i]):
            raise node.refuse("its filters do not reach as far as its result")
        totals.append(total)
    longer = tuple(old + max(0, -total) for old, total in zip(extra, totals, strict=True))
    cut = [max(0, total) for total in totals]
    small, large = [total // 2 for total in cut], [total - total // 2 for total in cut]
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small), longer


def _pool(node: Lowering, kind: str, *, power: int = 1) -> Tensor:
    x, kernel = node.x(0), node.integers("kernel_shape") or ()
    attributes: dict[str, Attribute] = {
        **_windows(node, x, kernel),
        "kind": kind,
        "kernel": kernel,
        "up": bool(node.integer("ceil_mode", 0)) and node.text("auto_pad", "NOTSET") in ("NOTSET", "VALID"),
        "count_pads": bool(node.integer("count_include_pad", 0)),
        "power": power,
    }
    pads, dilations = attributes["pads"], attributes["dilations"]
    assert isinstance(pads, tuple) and isinstance(dilations, tuple)
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    if len(pads) != 2 * len(kernel) or any(pad >= extent for pad, extent in zip(pads, extents * 2, strict=True)):
        raise node.refuse("a window may lie in its pads alone")
    if node.context.targets:
        return _by_reduction(node, x, attributes)
    return node.emit("pool", [x], attributes)


def _by_reduction(node: Lowering, x: Tensor, attributes: dict[str, Attribute]) -> Tensor:
    """What each window sees, reduced. Where windows end in the pads, all pads count or none does."""
    kind, kernel = attributes["kind"], _ints(attributes, "kernel")
    if kind not in ("max", "average") or (attributes["up"] and kind != "max") or x.dtype not in FLOATS:
        raise node.refuse("no kernel pools like that")
    if attributes["up"]:
        attributes = {**attributes, "pads": _reached(node, x, attributes)}
    if kind == "average" and any(_ints(attributes, "pads")) and not attributes["count_pads"]:
        raise node.refuse("no kernel counts what a window sees")
    seen = _seen(node, x, kernel, attributes, -math.inf if kind == "max" else 0.0)
    places = seen.shape[2 + len(kernel) :]
    rows = node.view(seen, (*x.shape[:2], math.prod(kernel), dims.product(places)))
    reduced = {"kind": "max" if kind == "max" else "mean", "axes": (2,), "keep": False}
    return node.view(node.emit("reduce", [rows], reduced), (*x.shape[:2], *places))


@lowers("MaxPool")
def _max_pool(node: Lowering) -> None:
    if node.wants(1):
        raise node.refuse("the places of its maxima are asked for")
    node.give(_pool(node, "max"))


@lowers("AveragePool")
def _average_pool(node: Lowering) -> None:
    node.give(_pool(node, "average"))


@lowers("LpPool")
def _lp_pool(node: Lowering) -> None:
    if node.version < 2:
        raise node.refuse("its power is that of opset 1")
    node.give(_pool(node, "lp", power=node.integer("p", 2)))


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(node: Lowering) -> None:
    x = node.x(0)
    kind = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}.get(node.node.op_type)
    if kind is None:
        kind = {1: "l1", 2: "l2"}.get(node.integer("p", 2) if node.version >= 2 else 0)
    if kind is None or len(x.shape) < 3:
        raise node.refuse("of a power of its own, or over no axis")
    node.give(node.emit("reduce", [x], {"kind": kind, "axes": tuple(range(2, len(x.shape))), "keep": True}))


@lowers("Col2Im")
def _col2im(node: Lowering) -> None:
    x, image, block = node.x(0), node.ints(1), node.ints(2)
    axes = len(block)
    attributes: dict[str, Attribute] = {
        "image": image,
        "block": block,
        "strides": node.integers("strides") or (1,) * axes,
        "dilations": node.integers("dilations") or (1,) * axes,
        "pads": node.integers("pads") or (0,) * 2 * axes,
    }
    node.give(node.emit("col2im", [x], attributes))


@lowers("MaxUnpool")
def _max_unpool(node: Lowering) -> None:
    """The places are those of elements of the whole result, flat."""
    x, places, kernel = node.x(0), node.x(1), node.integers("kernel_shape") or ()
    if node.has(2):
        raise node.refuse("its places are those of another shape")
    axes = len(kernel)
    strides, pads = node.integers("strides") or (1,) * axes, node.integers("pads") or (0,) * 2 * axes
    if len(x.shape) != axes + 2 or len(strides) != axes or len(pads) != 2 * axes:
        raise ValueError(f"expected strides and pads of {axes} axes, found others")
    spatial = [
        dims.add(dims.mul(axis, strides[i]), kernel[i] - strides[i] - pads[i] - pads[axes + i])
        for i, axis in enumerate(x.shape[2:])
    ]
    shape = (*x.shape[:2], *spatial)
    whole = numbers(shape)
    if whole is None:
        raise node.refuse("its places depend on a size")
    nothing, flat = filled(node, x.dtype, 0, (math.prod(whole),)), (dims.product(x.shape),)
    operands = [nothing, node.view(places, flat), node.view(x, flat)]
    node.give(node.view(node.emit("scatter_elements", operands, {"axis": 0, "reduction": "none"}), shape))
