"""Which ONNX nodes read an image between its pixels?"""

from __future__ import annotations

from fractions import Fraction

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import axis_of, numbers
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import Attribute

SAMPLING = {
    "bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic",
}  # fmt: skip
"""ONNX's words, old and new, and torch's."""


@lowers("Resize")
def _resize(node: Lowering) -> None:
    if node.version < 11:
        return _upsample(node)
    x = node.x(0)
    axes = [axis_of(axis, len(x.shape)) for axis in node.integers("axes") or range(len(x.shape))]
    if node.has(3):
        _to_sizes(node, x, axes, node.sizes(3))
    else:
        _by_scales(node, x, axes, node.constant(2), _attributes(node))


def _attributes(node: Lowering) -> dict[str, Attribute]:
    mode = node.text("mode", "nearest")
    if mode != "nearest" and node.integer("antialias", 0):
        raise node.refuse("it smooths")
    return {
        "mode": mode,
        "places": node.text("coordinate_transformation_mode", "half_pixel"),
        "rounding": node.text("nearest_mode", "round_prefer_floor"),
        "outside": node.number("extrapolation_value", 0.0),
        "cubic": node.number("cubic_coeff_a", -0.75),
        "inside_only": bool(node.integer("exclude_outside", 0)),
    }


def _to_sizes(node: Lowering, x: Tensor, axes: list[int], wanted: tuple[Expression, ...]) -> None:
    attributes = _attributes(node)
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return _along(node, x, attributes, [(axis, size, 0.0) for axis, size in zip(axes, wanted, strict=True)])
    old, new = numbers([x.shape[axis] for axis in axes]), numbers(wanted)
    if old is None or new is None or min(old, default=1) < 1:
        raise node.refuse("its proportion depends on a size")
    choose = min if policy == "not_larger" else max
    scale = choose(Fraction(after, before) for before, after in zip(old, new, strict=True))
    sizes = [int(scale * size + Fraction(1, 2)) for size in old]
    _along(node, x, attributes, [(axis, size, float(scale)) for axis, size in zip(axes, sizes, strict=True)])


def _by_scales(
    node: Lowering, x: Tensor, axes: list[int], scales: list[float], attributes: dict[str, Attribute]
) -> None:
    _along(
        node,
        x,
        attributes,
        [
            (axis, _scaled(node, x.shape[axis], scale, attributes), scale)
            for axis, scale in zip(axes, scales, strict=True)
        ],
    )


def _scaled(node: Lowering, axis: Expression, scale: float, attributes: dict[str, Attribute]) -> Expression:
    """The size, rounded down. A scale is a float32: of a size that has no number yet only one by a whole number, or
    one part of a whole, is certain."""
    if isinstance(axis, int):
        size = int(axis * scale)
        exact = ("align_corners", "tf_crop_and_resize", *(("pytorch_half_pixel",) if size < 2 else ()))
        if size != axis * scale and attributes["places"] in exact:
            raise node.refuse("its ends lie between two elements")
        return size
    if scale == int(scale):
        return dims.mul(axis, int(scale))
    if scale > 0 and 1 / scale == int(1 / scale) and attributes["places"] in ("half_pixel", "asymmetric"):
        return dims.floor_div(axis, int(1 / scale))
    raise node.refuse("an axis without a fixed size by a fraction")


def _along(
    node: Lowering, x: Tensor, attributes: dict[str, Attribute], wanted: list[tuple[int, Expression, float]]
) -> None:
    """One launch for each axis that changes."""
    crops = attributes["places"] == "tf_crop_and_resize"
    roi = node.constant(1) if crops else []
    y = x
    for i, (axis, size, scale) in enumerate(wanted):
        start, end = (roi[i], roi[len(wanted) + i]) if crops else (0.0, 1.0)
        if dims.canonical(size) == dims.canonical(x.shape[axis]) and scale in (0.0, 1.0):
            if (start, end) != (0.0, 1.0):
                raise node.refuse("it crops an axis and keeps its size")
            continue
        shape = (*y.shape[:axis], size, *y.shape[axis + 1 :])
        own = {**attributes, "axis": axis, "scale": scale, "start": start, "end": end}
        y = node.emit("resize", [y], own, [TensorType(x.dtype, shape)])
    node.give(node.elementwise("x0", x) if y is x else y)


@lowers("Upsample")
def _upsample(node: Lowering) -> None:
    """Also the Resize of opset 10: elements lie at whole multiples of the scale."""
    x, mode = node.x(0), node.text("mode", "nearest")
    if node.node.attributes.get("scales") is not None:
        scales = [float(scale) for scale in node.node.attributes["scales"].as_floats()]
    else:
        scales = node.constant(1)
    if mode not in ("nearest", "linear") or min(scales, default=1) < 1:
        raise node.refuse(f"{mode}, perhaps to fewer elements")
    attributes: dict[str, Attribute] = {
        "mode": mode, "places": "asymmetric", "rounding": "floor", "outside": 0.0, "cubic": -0.75, "inside_only": False,
    }  # fmt: skip
    _by_scales(node, x, list(range(len(x.shape))), scales, attributes)


@lowers("GridSample")
def _grid_sample(node: Lowering) -> None:
    attributes = {
        "mode": SAMPLING.get(node.text("mode", "linear"), ""),
        "padding": node.text("padding_mode", "zeros"),
        "align": bool(node.integer("align_corners", 0)),
    }
    node.give(node.emit("grid_sample", [node.x(0), node.x(1)], attributes))


@lowers("AffineGrid")
def _affine_grid(node: Lowering) -> None:
    theta, size = node.x(0), node.sizes(1)
    if len(size) not in (4, 5) or dims.canonical(size[0]) != theta.shape[0]:
        raise node.refuse("its size is not one of an image for each matrix")
    shape = (theta.shape[0], *size[2:], len(size) - 2)
    align = bool(node.integer("align_corners", 0))
    node.give(node.emit("affine_grid", [theta], {"align": align}, [TensorType(theta.dtype, shape)]))
