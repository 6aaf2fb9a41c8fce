"""Which ONNX nodes make tensors longer or shorter at their ends?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import axis_of, numbers
from hjgc.plan_format.sizes import Expression


@lowers("Pad")
def _pad(node: Lowering) -> None:
    x, mode = node.x(0), node.text("mode", "constant")
    pads = node.sizes(1) if node.has(1) else node.integers("pads") or node.integers("paddings") or ()
    axes = [axis_of(axis, len(x.shape)) for axis in node.ints(3)] if node.has(3) else list(range(len(x.shape)))
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise ValueError(f"expected two pads for each of {len(axes)} axes, found {len(pads)}")
    before: list[Expression] = [0] * len(x.shape)
    after: list[Expression] = [0] * len(x.shape)
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    if mode != "constant":
        _check_repetition(node, mode, (*before, *after))
    value = node.optional(2) if mode == "constant" else None
    if value is None and mode == "constant" and node.number("value", 0):
        raise node.refuse("its number is an attribute")
    node.give(_surrounded(node, x, mode, before, after, value))


def _check_repetition(node: Lowering, mode: str, pads: tuple[Expression, ...]) -> None:
    found = numbers(pads)
    if mode not in ("edge", "reflect", "wrap") or found is None or min(found, default=0) < 0:
        raise node.refuse(f"{mode} by less than nothing, or by sizes")


def _surrounded(
    node: Lowering,
    x: Tensor,
    mode: str,
    before: list[Expression],
    after: list[Expression],
    value: Tensor | None,
) -> Tensor:
    first = numbers(before)
    if first is None:
        raise node.refuse("where it begins depends on a size")
    shape = [dims.add(dims.add(axis, low), high) for axis, low, high in zip(x.shape, before, after, strict=True)]
    attributes = {"mode": mode, "before": first}
    return node.emit("pad", [x, value], attributes, [TensorType(x.dtype, tuple(shape))])


@lowers("CenterCropPad")
def _center_crop_pad(node: Lowering) -> None:
    x = node.x(0)
    axes = [axis_of(axis, len(x.shape)) for axis in node.integers("axes") or range(len(x.shape))]
    before, shape = [0] * len(x.shape), list(x.shape)
    for axis, wanted in zip(axes, node.sizes(1), strict=True):
        shape[axis] = wanted
        if wanted != x.shape[axis]:
            before[axis] = _centered(node, x.shape[axis], wanted)
    attributes = {"mode": "constant", "before": tuple(before)}
    node.give(node.emit("pad", [x], attributes, [TensorType(x.dtype, tuple(shape))]))


def _centered(node: Lowering, axis: Expression, wanted: Expression) -> int:
    if not isinstance(axis, int) or not isinstance(wanted, int):
        raise node.refuse("its middle depends on a size")
    return (wanted - axis) // 2 if wanted > axis else -((axis - wanted) // 2)
