"""Which ONNX nodes make tensors of sizes and places alone: shapes, ranges, equal numbers, windows of a signal?"""

from __future__ import annotations

import math

import onnx_ir as ir

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.compiler.tables import ALL_DTYPES
from hjgc.plan_format import dims
from hjgc.plan_format.dtypes import ITEM_BYTES, DType
from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import axis_of, broadcast
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.sizes import Expression


@lowers("Shape")
def _shape(node: Lowering) -> None:
    x = node.x(0)
    rank = len(x.shape)
    start, end, _ = slice(node.integer("start", 0), node.integer("end", rank)).indices(rank)
    node.give(node.emit("shape_of", [x], {"start": start, "end": max(start, end)}))


@lowers("Size")
def _size(node: Lowering) -> None:
    x = node.x(0)
    sizes = node.emit("shape_of", [x], {"start": 0, "end": len(x.shape)})
    node.give(node.emit("reduce", [sizes], {"kind": "prod", "axes": (0,), "keep": False}))


@lowers("ConstantOfShape")
def _constant_of_shape(node: Lowering) -> None:
    shape = node.sizes(0)
    value = node.node.attributes.get("value")
    tensor = None if value is None else value.as_tensor()
    kind = ir.DataType.FLOAT if tensor is None else tensor.dtype
    number = 0 if tensor is None else tensor.numpy().reshape(-1)[0].item()
    node.give(filled(node, _dtype(node, kind), number, shape))


def filled(node: Lowering, dtype: DType, value: float, shape: tuple[Expression, ...]) -> Tensor:
    return node.emit("fill", [], {"value": node.scalar(dtype, value)}, [TensorType(dtype, shape)])


def _dtype(node: Lowering, kind: ir.DataType) -> DType:
    if kind not in ALL_DTYPES:
        raise node.refuse(f"no buffer holds {kind.name.lower()}", ReasonCode.HOST_TYPE)
    return ALL_DTYPES[kind]


def counted(node: Lowering, count: Expression, dtype: DType = "int64", start: int = 0, step: int = 1) -> Tensor:
    """`start`, `start + step`, ..., so many."""
    return node.emit("iota", [], {"start": start, "step": step}, [TensorType(dtype, (count,))])


@lowers("Range")
def _range(node: Lowering) -> None:
    dtype = _dtype(node, node.node.outputs[0].dtype or ir.DataType.UNDEFINED)
    if dtype in FLOATS:
        return _float_range(node, dtype)
    if dtype not in SIGNED:
        raise node.refuse(f"of {dtype}")
    (start,), (limit,), (step,) = (node.sizes(i) for i in range(3))
    if not isinstance(step, int) or step == 0:
        raise node.refuse("it does not go in steps of one number")
    count = dims.ceil_div(dims.sub(limit, start) if step > 0 else dims.sub(start, limit), abs(step))
    count = max(0, count) if isinstance(count, int) else count
    if isinstance(start, int):
        return node.give(counted(node, count, dtype, start, step))
    places = counted(node, count, dtype, 0, step)
    return node.give(node.elementwise("add(x0, x1)", places, node.x(0)))


def _float_range(node: Lowering, dtype: DType) -> None:
    start, limit, step = (node.constant(i)[0] for i in range(3))
    places = counted(node, max(0, math.ceil((limit - start) / step)))
    spaced = f"add({node.scalar('float64', start)}, mul(cast.float64(x0), {node.scalar('float64', step)}))"
    node.give(node.elementwise(f"cast.{dtype}({spaced})", places))


@lowers("EyeLike")
def _eye(node: Lowering) -> None:
    x, shift = node.x(0), node.integer("k", 0)
    if len(x.shape) != 2:
        raise node.refuse("its operand is no matrix")
    kind = node.integer("dtype", 0)
    dtype = _dtype(node, ir.DataType(kind)) if kind else x.dtype
    rows, columns = node.view(counted(node, x.shape[0], start=shift), (x.shape[0], 1)), counted(node, x.shape[1])
    node.give(node.elementwise(f"cast.{dtype}(eq(x0, x1))", rows, columns))


@lowers("OneHot")
def _one_hot(node: Lowering) -> None:
    """Numbers outside of the depth have no place."""
    indices, values = node.x(0), node.x(2)
    (depth,) = node.sizes(1) if _is_whole(node, 1) else map(int, node.constant(1))
    if not isinstance(depth, int):
        raise node.refuse("its depth depends on a size")
    axis = axis_of(node.integer("axis", -1), len(indices.shape) + 1)
    each = node.view(indices, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    classes = node.view(counted(node, depth), (depth, *[1] * (len(indices.shape) - axis)))
    behind = f"eq(add(cast.int64(x0), int64:{depth}), x1)"
    found = node.elementwise(f"cast.int32(or(eq(cast.int64(x0), x1), {behind}))", each, classes)
    node.give(node.emit("gather", [values, found], {"axis": 0}))


def _is_whole(node: Lowering, index: int) -> bool:
    value = node.node.inputs[index]
    return value is not None and value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


@lowers("Tile")
def _tile(node: Lowering) -> None:
    """Each axis that is repeated gets one of its own before it."""
    x = node.x(0)
    if node.version < 6:
        raise node.refuse("its operands are those of opset 1")
    repeats = node.sizes(1)
    inner: list[Expression] = []
    outer: list[Expression] = []
    for axis, repeat in zip(x.shape, repeats, strict=True):
        inner += [axis] if repeat == 1 else [1, axis]
        outer += [axis] if repeat == 1 else [repeat, axis]
    parts = node.view(x, inner)
    shape = broadcast([tuple(map(dims.canonical, inner)), tuple(map(dims.canonical, outer))])
    whole = node.emit("expand", [parts], {}, [TensorType(x.dtype, shape)])
    node.give(node.view(whole, [dims.mul(axis, repeat) for axis, repeat in zip(x.shape, repeats, strict=True)]))


@lowers("BitCast")
def _bit_cast(node: Lowering) -> None:
    x, dtype = node.x(0), _dtype(node, ir.DataType(node.integer("to", 0)))
    if ITEM_BYTES[x.dtype] != ITEM_BYTES[dtype]:
        raise node.refuse(f"{x.dtype} and {dtype} are not of one width")
    node.give(node.emit("bitcast", [x], {}, [TensorType(dtype, tuple(x.shape))]))


WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0), "HammingWindow": (25 / 46, 21 / 46, 0.0), "BlackmanWindow": (0.42, 0.5, 0.08),
}  # fmt: skip
"""a - b cos(x) + c cos(2 x) over one turn."""


@lowers(*WINDOWS)
def _window(node: Lowering) -> None:
    (size,) = node.ints(0)
    dtype = _dtype(node, ir.DataType(node.integer("output_datatype", 1)))
    turn = size if node.integer("periodic", 1) else size - 1
    if dtype not in FLOATS or turn < 1:
        raise node.refuse(f"{size} of {dtype}")
    a, b, c = (node.scalar("float64", factor) for factor in WINDOWS[node.node.op_type])
    angle = f"mul(cast.float64(x0), {node.scalar('float64', 2 * math.pi / turn)})"
    rest = f"mul({c}, cos(mul({node.scalar('float64', 2)}, {angle})))"
    text = f"add(sub({a}, mul({b}, cos({angle}))), {rest})"
    node.give(node.elementwise(f"cast.{dtype}({text})", counted(node, size)))
