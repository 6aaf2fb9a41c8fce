"""Which ONNX nodes go between numbers and bytes that stand for them, or multiply such bytes?"""

from __future__ import annotations

import onnx_ir as ir

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.compiler.tables import ALL_DTYPES
from hjgc.plan_format import dims
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import FLOATS
from hjgc.plan_format.ops.shapes import axis_of

ENDS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
"""Types that are quantised to, and the least and the greatest that each holds: float32 has all of them."""


def _dtype(node: Lowering, attribute: str, default: DType) -> DType:
    """A type that the node names."""
    kind = ir.DataType(node.integer(attribute, 0))
    if kind == ir.DataType.UNDEFINED:
        return default
    if kind not in ALL_DTYPES:
        raise node.refuse(f"its {attribute} is {kind.name.lower()}")
    return ALL_DTYPES[kind]


def _saturated(dtype: DType, whole: str, zero: str | None) -> str:
    """A whole number in float32, moved by the zero point, as the nearest that the type holds."""
    low, high = ENDS[dtype]
    moved = whole if zero is None else f"add({whole}, cast.float32({zero}))"
    return f"cast.{dtype}(min(max({moved}, float32:{low}), float32:{high}))"


def _aligned(node: Lowering, x: Tensor, scale: Tensor, zero: Tensor | None) -> list[Tensor]:
    """The operand, its scale and its zero point, to be broadcast: one for all, for each place of an axis, or for blocks
    along it."""
    given = [scale] if zero is None else [scale, zero]
    if all(dims.product(each.shape) == 1 for each in given):
        return [x, *(node.view(each, ()) for each in given)]
    axis, block = axis_of(node.integer("axis", 1), len(x.shape)), node.integer("block_size", 0)
    front, size, rest = tuple(x.shape[:axis]), x.shape[axis], tuple(x.shape[axis + 1 :])
    blocks = dims.divide(size, block) if block else size
    wanted = (size,) if not block else (*front, blocks, *rest)
    if blocks is None or any(tuple(each.shape) != wanted for each in given):
        raise node.refuse(f"expected scales and zero points of {wanted}, found {[tuple(x.shape) for x in given]}")
    if not block:
        return [x, *(node.view(each, (size, *[1] * len(rest))) for each in given)]
    rows = node.view(x, (*front, blocks, block, *rest))
    return [rows, *(node.view(each, (*front, blocks, 1, *rest)) for each in given)]


@lowers("QuantizeLinear")
def _quantize(node: Lowering) -> None:
    x, scale, zero = node.x(0), node.x(1), node.optional(2)
    dtype = _dtype(node, "output_dtype", "uint8") if zero is None else zero.dtype
    if dtype not in ENDS or scale.dtype not in FLOATS:
        raise node.refuse(f"to {dtype} by {scale.dtype}")
    wide = _dtype(node, "precision", scale.dtype)
    if wide not in FLOATS:
        raise node.refuse(f"its precision is {wide}")
    inputs = _aligned(node, x, scale, zero)
    whole = f"cast.float32(round(div(cast.{wide}(x0), cast.{wide}(x1))))"
    node.give(node.view(node.elementwise(_saturated(dtype, whole, None if zero is None else "x2"), *inputs), x.shape))


@lowers("DequantizeLinear")
def _dequantize(node: Lowering) -> None:
    """The difference of two of these types is exact in float32, and so is its product until it is rounded."""
    x, scale, zero = node.x(0), node.x(1), node.optional(2)
    if x.dtype not in (*ENDS, "int32") or (x.dtype == "int32" and zero is not None):
        raise node.refuse(f"of {x.dtype}")
    if scale.dtype not in FLOATS or (zero is not None and zero.dtype != x.dtype):
        raise node.refuse("its scale and zero point do not fit it")
    dtype = _dtype(node, "output_dtype", scale.dtype)
    if dtype not in FLOATS:
        raise node.refuse(f"to {dtype}")
    inputs = _aligned(node, x, scale, zero)
    whole = "x0" if zero is None else "sub(cast.int32(x0), cast.int32(x2))"
    text = f"cast.{dtype}(mul(cast.float32({whole}), cast.float32(x1)))"
    node.give(node.view(node.elementwise(text, *inputs), x.shape))


@lowers("DynamicQuantizeLinear")
def _dynamic(node: Lowering) -> None:
    """To uint8, so that 0 and all numbers lie inside."""
    x = node.x(0)
    if x.dtype != "float32":
        raise node.refuse(f"of {x.dtype}")
    axes = tuple(range(len(x.shape)))
    low, high = (node.emit("reduce", [x], {"kind": kind, "axes": axes, "keep": False}) for kind in ("min", "max"))
    span = "sub(max(x1, float32:0), min(x0, float32:0))"
    scale = node.elementwise(f"where(eq({span}, float32:0), float32:1, div({span}, float32:255))", low, high)
    place = "round(min(max(neg(div(min(x0, float32:0), x1)), float32:0), float32:255))"
    zero = node.elementwise(f"cast.uint8({place})", low, scale)
    node.give(node.elementwise(_saturated("uint8", "round(div(x0, x1))", "x2"), x, scale, zero), 0)
    for index, result in ((1, scale), (2, zero)):
        if node.wants(index):
            node.give(result, index)


def _of_rows(node: Lowering, each: Tensor | None) -> Tensor | None:
    """What holds for all of a matrix or for each of its rows, to be broadcast."""
    if each is None or dims.product(each.shape) == 1:
        return None if each is None else node.view(each, ())
    return node.view(each, (*each.shape, 1)) if len(each.shape) == 1 else each


def _of_columns(node: Lowering, each: Tensor | None) -> Tensor | None:
    """The same of its columns."""
    return node.view(each, ()) if each is not None and dims.product(each.shape) == 1 else each


@lowers("MatMulInteger")
def _integer_product(node: Lowering) -> None:
    zeros = [_of_rows(node, node.optional(2)), _of_columns(node, node.optional(3))]
    node.give(node.emit("integer_matmul", [node.x(0), node.x(1), *zeros]))


@lowers("QLinearMatMul")
def _quantised_product(node: Lowering) -> None:
    """The exact product, brought to the result's scale in float32."""
    zeros = [_of_rows(node, node.x(2)), _of_columns(node, node.x(5))]
    whole = node.emit("integer_matmul", [node.x(0), node.x(3), *zeros])
    scales = [_of_rows(node, node.x(1)), _of_columns(node, node.x(4)), _of_rows(node, node.x(6))]
    zero = _of_rows(node, node.x(7))
    if zero is None or zero.dtype not in ("int8", "uint8"):
        raise node.refuse("its result is of no bytes")
    inputs = [whole, *(scale for scale in scales if scale is not None), zero]
    factor = "div(mul(cast.float32(x1), cast.float32(x2)), cast.float32(x3))"
    y = node.elementwise(_saturated(zero.dtype, f"round(mul(cast.float32(x0), {factor}))", "x4"), *inputs)
    if tuple(y.shape) != tuple(whole.shape):
        raise node.refuse("its scales are wider than its result")
    node.give(y)
