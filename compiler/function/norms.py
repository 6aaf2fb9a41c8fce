"""Which ONNX nodes bring numbers to a common measure: a mean of 0, a deviation or a length of 1?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import axis_of
from hjgc.plan_format.structs import Attribute


def _layer(node: Lowering, axis: int, *, center: bool = True) -> dict[str, Attribute]:
    """The attributes of a `layer_norm`."""
    return {"axis": axis, "epsilon": node.number("epsilon", 1e-5), "center": center}


@lowers("LayerNormalization")
def _layer_norm(node: Lowering) -> None:
    x = node.x(0)
    if node.integer("stash_type", 1) != 1:
        raise node.refuse("its moments are not float32")
    axis = axis_of(node.integer("axis", -1), len(x.shape))
    moments = TensorType("float32", tuple(x.shape))
    wanted = [TensorType(x.dtype, tuple(x.shape)), *([moments, moments] if node.wants(1) or node.wants(2) else [])]
    made = node.emit_all("layer_norm", [x, node.x(1), node.optional(2)], _layer(node, axis), wanted)
    for index, result in enumerate(made):
        if index == 0 or node.wants(index):
            node.give(result, index)


@lowers("RMSNormalization")
def _rms_norm(node: Lowering) -> None:
    attributes = _layer(node, node.integer("axis", -1), center=False)
    node.give(node.emit("layer_norm", [node.x(0), node.x(1)], attributes))


@lowers("InstanceNormalization")
def _instance_norm(node: Lowering) -> None:
    """Each channel of each image, with a gain and a bias of its own."""
    x = node.x(0)
    batch, channels, *rest = x.shape
    rows = node.view(x, (batch, channels, dims.product(rest)))
    affine = [node.view(node.x(index), (channels, 1)) for index in (1, 2)]
    node.give(node.view(_by_channel(node, rows, affine), x.shape))


def _by_channel(node: Lowering, rows: Tensor, affine: list[Tensor]) -> Tensor:
    """The norm of axes behind the second, with a gain and a bias that are none of those axes'; a GPU's kernel takes
    none of these."""
    if not node.context.targets:
        return node.emit("layer_norm", [rows, *affine], _layer(node, 2))
    return node.elementwise("add(mul(x0, x1), x2)", node.emit("layer_norm", [rows], _layer(node, 2)), *affine)


@lowers("GroupNormalization")
def _group_norm(node: Lowering) -> None:
    """Each group of channels; until opset 20 with a gain and a bias for each group, then for each channel."""
    x, groups = node.x(0), node.integer("num_groups", 0)
    if node.integer("stash_type", 1) != 1:
        raise node.refuse("it is not computed in float32")
    batch, channels, *rest = x.shape
    each = dims.divide(channels, groups) if groups > 0 else None
    if each is None:
        raise node.refuse(f"expected groups that divide {channels} channels, found {groups}")
    rows = node.view(x, (batch, groups, each, dims.product(rest)))
    shape = (groups, 1, 1) if node.version < 21 else (groups, each, 1)
    affine = [node.view(node.x(index), shape) for index in (1, 2)]
    node.give(node.view(_by_channel(node, rows, affine), x.shape))


@lowers("BatchNormalization")
def _batch_norm(node: Lowering) -> None:
    """By moments that are given: one expression, computed in float32 at least."""
    trains = node.integer("training_mode", 0) or (node.version < 7 and not node.integer("is_test", 0))
    if trains or any(node.wants(i) for i in range(1, 5)):
        raise node.refuse("it trains")
    if not node.integer("spatial", 1):  # before opset 9
        raise node.refuse("it has moments for each place")
    x = node.x(0)
    _, channels, *rest = x.shape
    shape = (channels, *[1] * len(rest))
    inputs = [x, *(node.view(node.x(index), shape) for index in (1, 2, 3, 4))]
    if x.dtype not in FLOATS:
        raise node.refuse(f"of {x.dtype}")
    wide = "float64" if x.dtype == "float64" else "float32"
    y, gain, bias, mean, variance = (f"cast.{wide}(x{i})" for i in range(5))
    deviation = f"sqrt(add({variance}, {node.scalar(wide, node.number('epsilon', 1e-5))}))"
    text = f"add(mul(div(sub({y}, {mean}), {deviation}), {gain}), {bias})"
    node.give(node.elementwise(f"cast.{x.dtype}({text})", *inputs))


@lowers("MeanVarianceNormalization")
def _mean_variance(node: Lowering) -> None:
    x, axes = _wide(node, node.x(0)), node.integers("axes")
    if node.version < 9:
        raise node.refuse("of an opset under 9")
    mean = _reduced(node, x, "mean", (0, 2, 3) if axes is None else axes)
    squares = node.elementwise("mul(sub(x0, x1), sub(x0, x1))", x, mean)
    variance = _reduced(node, squares, "mean", (0, 2, 3) if axes is None else axes)
    text = f"div(sub(x0, x1), add(sqrt(x2), {node.scalar(x.dtype, 1e-9)}))"
    node.give(node.elementwise(f"cast.{node.x(0).dtype}({text})", x, mean, variance))


@lowers("LpNormalization")
def _lp_norm(node: Lowering) -> None:
    """What has length 0 stays 0."""
    x, power = _wide(node, node.x(0)), node.integer("p", 2)
    if power not in (1, 2):
        raise node.refuse(f"of power {power}")
    length = _reduced(node, x, f"l{power}", (node.integer("axis", -1),))
    zero = node.scalar(x.dtype, 0)
    text = f"where(eq(x1, {zero}), {zero}, div(x0, x1))"
    node.give(node.elementwise(f"cast.{node.x(0).dtype}({text})", x, length))


def _wide(node: Lowering, x: Tensor) -> Tensor:
    """In a type whose squares do not run over."""
    return node.elementwise("cast.float32(x0)", x) if x.dtype in ("float16", "bfloat16") else x


def _reduced(node: Lowering, x: Tensor, kind: str, axes: tuple[int, ...]) -> Tensor:
    return node.emit("reduce", [x], {"kind": kind, "axes": axes, "keep": True})


@lowers("LRN")
def _neighbour_norm(node: Lowering) -> None:
    attributes = {
        "size": node.integer("size", 0),
        "alpha": node.number("alpha", 1e-4),
        "beta": node.number("beta", 0.75),
        "bias": node.number("bias", 1.0),
    }
    node.give(node.emit("neighbour_norm", [node.x(0)], attributes))
