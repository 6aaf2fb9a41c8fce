"""Which ONNX nodes make few numbers of many, or rows that add up to one?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import FLOATS, SIGNED
from hjgc.plan_format.ops.reduce import ROOTS

KINDS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceSumSquare": "sum_square", "ReduceL1": "l1", "ReduceL2": "l2", "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp",
}  # fmt: skip


@lowers(*KINDS)
def _reduce(node: Lowering) -> None:
    x, axes, kind = node.x(0), node.ints_or(1, "axes"), KINDS[node.node.op_type]
    if x.dtype not in (*FLOATS, *SIGNED, "uint8", "bool") or (x.dtype == "bool" and kind not in ("max", "min")):
        raise node.refuse(f"of {x.dtype}")
    if kind in ROOTS and x.dtype not in FLOATS:
        raise node.refuse(f"of {x.dtype}")
    every = tuple(range(len(x.shape)))
    if not axes and node.integer("noop_with_empty_axes", 0):
        chosen: tuple[int, ...] = ()
    else:
        chosen = axes or every
    node.give(node.emit("reduce", [x], {"kind": kind, "axes": chosen, "keep": bool(node.integer("keepdims", 1))}))


@lowers("Softmax", "LogSoftmax")
def _softmax(node: Lowering) -> None:
    x, log = node.x(0), node.node.op_type == "LogSoftmax"
    if node.version >= 13:
        return node.give(node.emit("softmax", [x], {"axis": node.integer("axis", -1), "log": log}))
    axis = node.integer("axis", 1) % max(1, len(x.shape))
    rows = node.view(x, (dims.product(x.shape[:axis]), dims.product(x.shape[axis:])))
    node.give(node.view(node.emit("softmax", [rows], {"axis": 1, "log": log}), x.shape))
