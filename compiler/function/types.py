"""How are ONNX's types and dimensions spelt in a plan?"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable

import onnx
import onnx_ir as ir

from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Expression

NAMELESS = re.compile(r"\W*|none|unk\w*", re.IGNORECASE)
NAMES = {"FLOAT": "float", "DOUBLE": "double"}
"""Those that ONNX Runtime spells in its own way."""
Operation = Callable[[Expression, Expression], Expression]
OPERATIONS: dict[type[ast.operator], Operation] = {
    ast.Add: dims.add,
    ast.Sub: dims.sub,
    ast.Mult: dims.mul,
    ast.FloorDiv: dims.floor_div,
}


def type_text(value: ir.Value) -> str:
    """`tensor(float)`, `seq(tensor(int64))`, `optional(...)`; `unknown` where the model does not say."""
    return "unknown" if value.type is None else _spelt(ir.serde.serialize_type(value.type))


def _spelt(proto: onnx.TypeProto) -> str:
    match proto.WhichOneof("value"):
        case "tensor_type":
            return f"tensor({element_name(proto.tensor_type.elem_type)})"
        case "sparse_tensor_type":
            return f"sparse_tensor({element_name(proto.sparse_tensor_type.elem_type)})"
        case "sequence_type":
            return f"seq({_spelt(proto.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({_spelt(proto.optional_type.elem_type)})"
        case "map_type":
            return f"map({element_name(proto.map_type.key_type)},{_spelt(proto.map_type.value_type)})"
        case _:
            return "unknown"


def element_name(kind: int) -> str:
    name = onnx.TensorProto.DataType.Name(kind)
    return NAMES.get(name, name.lower())


def axes(value: ir.Value, size: Callable[[str], Expression | None]) -> tuple[Expression | None, ...] | None:
    """A value's shape as far as it is declared; `size` says what a name stands for. None for an unknown rank."""
    if value.shape is None or not isinstance(value.type, ir.TensorType):
        return None
    return tuple(dimension(axis, size) for axis in value.shape)


def dimension(axis: int | ir.SymbolicDim, size: Callable[[str], Expression | None]) -> Expression | None:
    if isinstance(axis, int):
        return axis if axis >= 0 else None
    return None if axis.value is None else spelt_dimension(str(axis.value), size)


def spelt_dimension(text: str, size: Callable[[str], Expression | None]) -> Expression | None:
    """A dimension as exporters spell it: `batch`, `past + 1`, `8`."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return _expression(ast.parse(text, mode="eval").body, size)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return size(text)


def _expression(node: ast.expr, size: Callable[[str], Expression | None]) -> Expression:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            found = size(name)
            if found is None:
                raise ValueError(name)
            return found
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](_expression(left, size), _expression(right, size))
        case _:
            raise ValueError("no size")


def size_name(text: str) -> str:
    """A name that a plan's size may have."""
    clean = re.sub(r"[^A-Za-z0-9_.]", "_", text)[:120]
    return clean if re.match(r"[A-Za-z_]", clean) else f"_{clean}"


def is_anonymous(text: str) -> bool:
    """Does a dimension's name say nothing: `?`, `None`, `unk__3`?"""
    return NAMELESS.fullmatch(text) is not None


def plain_names(values: Iterable[ir.Value]) -> frozenset[str]:
    """Names that stand for an axis of one of these by themselves."""
    axes = (axis for value in values for axis in value.shape or ())
    texts = {str(axis.value) for axis in axes if isinstance(axis, ir.SymbolicDim) and axis.value is not None}
    return frozenset(text for text in texts if not is_anonymous(text) and not _is_expression(text))


def _is_expression(text: str) -> bool:
    try:
        return not isinstance(ast.parse(text, mode="eval").body, ast.Name)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
