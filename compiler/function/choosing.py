"""Which ONNX nodes go by the order or the place of numbers: the largest, all up to each, one side of a diagonal?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import axis_of
from hjgc.plan_format.sizes import Expression


@lowers("ArgMax", "ArgMin")
def _arg_reduce(node: Lowering) -> None:
    attributes = {
        "kind": "max" if node.node.op_type == "ArgMax" else "min",
        "axis": node.integer("axis", 0),
        "keep": bool(node.integer("keepdims", 1)),
        "last": bool(node.integer("select_last_index", 0)),
    }
    node.give(node.emit("arg_reduce", [node.x(0)], attributes))


@lowers("Hardmax")
def _hardmax(node: Lowering) -> None:
    """Until opset 12 all axes from one on count as one."""
    x = node.x(0)
    if node.version >= 13:
        return node.give(node.emit("hardmax", [x], {"axis": node.integer("axis", -1)}))
    axis = node.integer("axis", 1) % max(1, len(x.shape))
    rows = node.view(x, (dims.product(x.shape[:axis]), dims.product(x.shape[axis:])))
    node.give(node.view(node.emit("hardmax", [rows], {"axis": 1}), x.shape))


@lowers("TopK")
def _top_k(node: Lowering) -> None:
    x = node.x(0)
    axis = axis_of(node.integer("axis", -1), len(x.shape))
    shape = (*x.shape[:axis], _how_many(node, x.shape[axis]), *x.shape[axis + 1 :])
    types = [TensorType(x.dtype, shape), TensorType("int64", shape)]
    made = node.emit_all("top_k", [x], {"axis": axis, "largest": bool(node.integer("largest", 1))}, types)
    for index, result in enumerate(made):
        if node.wants(index):
            node.give(result, index)


def _how_many(node: Lowering, axis: Expression) -> Expression:
    if node.version < 10:
        return node.integer("k", 0)
    (count,) = node.sizes(1)
    if isinstance(count, int) and count > node.context.limits(axis)[0]:
        raise node.refuse(f"there may be fewer than {count} numbers")
    return count


@lowers("Trilu")
def _triangle(node: Lowering) -> None:
    node.give(node.emit("triangle", [node.x(0), node.optional(1)], {"upper": bool(node.integer("upper", 1))}))


@lowers("CumSum", "CumProd")
def _cumulate(node: Lowering) -> None:
    """Along an axis that is known, or that the launch reads."""
    x, named = node.x(0), node.node.inputs[1]
    known = named is not None and node.context.contents(named) is not None
    attributes = {
        "kind": "sum" if node.node.op_type == "CumSum" else "prod",
        "axis": node.ints(1)[0] if known else 0,
        "exclusive": bool(node.integer("exclusive", 0)),
        "reverse": bool(node.integer("reverse", 0)),
    }
    node.give(node.emit("cumulate", [x] if known else [x, node.x(1)], attributes))
