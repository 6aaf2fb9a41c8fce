"""Which weights are kept in 4 or 8 bits? Products with them become plain ones, of weights that are dequantised when
they are loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from hjgc.compiler.rules.rule import DOMAIN, NODES_KEY, Journal, constant_ints, node_name, source_nodes
from hjgc.compiler.simplify import put_in_place

MICROSOFT = "com.microsoft"
SIGNED = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}
UNSIGNED = {ir.DataType.UINT4: 4, ir.DataType.UINT8: 8}
RULE = "quantised"


@dataclass(frozen=True)
class Numbers:
    """A quantised matrix: its initializers, and what they mean (`plan_format.structs.Blocks`)."""

    values: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    shape: tuple[int, int]
    bits: int
    size: int
    axis: int
    signed: bool


def lift_quantised(model: ir.Model, journal: Journal) -> None:
    """Rewrite in place. The journal says of each such product that stays why."""
    lifter = _Lifter(model)
    for node in list(model.graph):
        lift = LIFTS.get((node.domain, node.op_type))
        if lift is None:
            continue
        try:
            lift(lifter, node)
        except LookupError as why:
            journal.add(RULE, node_name(node), str(why))


class _Lifter:
    """Puts each matrix into the graph once."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._made: dict[Numbers, ir.Value] = {}

    def product(self, node: ir.Node) -> None:
        """MatMulNBits: x times a matrix [N, K], plus a bias if it has one."""
        rows, columns = node.attributes["N"].as_int(), node.attributes["K"].as_int()
        bits, size = node.attributes.get_int("bits", 4), node.attributes["block_size"].as_int()
        if bits not in (4, 8):
            raise LookupError(f"it has {bits} bits")
        if len(node.inputs) > 4 and node.inputs[4] is not None:
            raise LookupError("it takes its columns in an order of its own (g_idx)")
        weight = self._dequantised(
            Numbers(*self._parts(node, 1, 2, 3), (rows, columns), bits, size, axis=1, signed=False), node
        )
        turn = ir.Node("", "Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])], num_outputs=1)
        made = [turn, ir.Node("", "MatMul", [node.inputs[0], turn.outputs[0]], num_outputs=1)]
        if len(node.inputs) > 5 and node.inputs[5] is not None:
            made.append(ir.Node("", "Add", [made[-1].outputs[0], node.inputs[5]], num_outputs=1))
        put_in_place(self.graph, node, made)

    def rows(self, node: ir.Node) -> None:
        """GatherBlockQuantized: rows of a table [V, H] by the token ids."""
        bits, size = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
        values, scales, zeros = self._parts(node, 0, 2, 3)
        if node.attributes.get_int("gather_axis", 0) or node.attributes.get_int("quantize_axis", 1) % 2 != 1:
            raise LookupError("it looks up along another axis than the first")
        blocks = _shape(scales)
        if values.dtype != ir.DataType.UINT8 or len(blocks) != 2 or bits not in (4, 8):
            raise LookupError("its table is not one of packed bytes")
        end, columns = _cut(node, blocks[1] * size)
        found = Numbers(values, scales, zeros, (blocks[0], columns), bits, size, axis=1, signed=False)
        table = self._dequantised(found, node)
        put_in_place(self.graph, end, [ir.Node("", "Gather", [table, node.inputs[1]], num_outputs=1)])

    def matrix(self, node: ir.Node) -> None:
        """DequantizeLinear of a weight [K, N] in blocks along the first axis, or the second."""
        values, scales, zeros = self._parts(node, 0, 1, 2)
        shape, kind, axis = _shape(values), values.dtype, node.attributes.get_int("axis", 1) % 2
        size = node.attributes.get_int("block_size", 0)
        if kind is None or kind not in {**SIGNED, **UNSIGNED} or len(shape) != 2 or size < 1:
            raise LookupError("its weight is not a matrix of 4 or 8 bits in blocks")
        bits = {**SIGNED, **UNSIGNED}[kind]
        found = Numbers(values, scales, zeros, (shape[0], shape[1]), bits, size, axis, kind in SIGNED)
        if axis == 1 and shape[1] % size:
            raise LookupError("its rows are not whole blocks")
        node.outputs[0].replace_all_uses_with(self._dequantised(found, node))

    def _parts(self, node: ir.Node, *places: int) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Numbers, scales, zero points: initializers all, if need be behind a change of shape."""
        found = [_initializer(node.inputs[i]) if i < len(node.inputs) else None for i in places]
        missing = [
            i
            for i in places
            if i < len(node.inputs) and node.inputs[i] is not None and _initializer(node.inputs[i]) is None
        ]
        values, scales, zeros = found
        if missing or values is None or scales is None:
            raise LookupError("its numbers, scales or zero points are computed")
        if zeros is not None and zeros.dtype not in (*SIGNED, *UNSIGNED):
            raise LookupError("its zero points are not whole numbers")
        return values, scales, zeros

    def _dequantised(self, found: Numbers, node: ir.Node) -> ir.Value:
        _check_sizes(found)
        if found not in self._made:
            attributes = [
                ir.AttrInt64s("shape", found.shape),
                *(ir.AttrInt64(name, int(getattr(found, name))) for name in ("bits", "size", "axis", "signed")),
            ]
            inputs = [found.values, found.scales, found.zeros]
            made = ir.Node(DOMAIN, "Dequantise", inputs, attributes, num_outputs=1, name=f"{node_name(node)}/weight")
            value = made.outputs[0]
            value.name, value.shape, value.dtype = (
                f"{found.values.name}.dequantised",
                ir.Shape(found.shape),
                ir.DataType.FLOAT,
            )
            made.metadata_props[NODES_KEY] = "\n".join(source_nodes(node))
            self.graph.insert_before(self.graph[0], [made])
            self._made[found] = value
        return self._made[found]


def _check_sizes(found: Numbers) -> None:
    """Raises LookupError unless there are as many numbers, scales and zero points as the shape wants."""
    if found.size < 1 or min(found.shape) < 1:
        raise LookupError(f"its blocks have {found.size} numbers")
    rows, columns = found.shape
    groups = -(-(columns if found.axis == 1 else rows) // found.size)
    scales = rows * groups if found.axis == 1 else groups * columns
    width = groups * found.size if found.axis == 1 else columns
    wanted = {
        "numbers": (found.values, rows * width * found.bits // 8),
        "zero points": (found.zeros, -(-(scales // (rows if found.axis == 1 else groups)) * found.bits // 8)),
    }
    if math.prod(_shape(found.scales)) != scales:
        raise LookupError(f"it has {math.prod(_shape(found.scales))} scales, not {scales}")
    for name, (value, count) in wanted.items():
        tensor = None if value is None else value.const_value
        count *= (rows if found.axis == 1 else groups) if name == "zero points" else 1
        if tensor is not None and tensor.nbytes != count:
            raise LookupError(f"its {name} take {tensor.nbytes} bytes, not {count}")


def _cut(node: ir.Node, columns: int) -> tuple[ir.Node, int]:
    """Columns of rows that a Slice cuts to before anybody sees them, which blocks had filled up, and that Slice."""
    users = {user for user, _ in node.outputs[0].uses()}
    if len(users) != 1:
        return node, columns
    (cut,) = users
    numbers = [constant_ints(value) for value in cut.inputs[1:]]
    plain = cut.op_type == "Slice" and len(numbers) in (3, 4) and numbers[3:] in ([], [(1,)])
    if not plain or numbers[0] != (0,) or numbers[2] not in ((-1,), (2,)) or node.outputs[0].is_graph_output():
        return node, columns
    if numbers[1] is not None and 0 < numbers[1][0] <= columns:
        return cut, numbers[1][0]
    return node, columns


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = value.const_value
    return () if tensor is None else tuple(int(axis) for axis in tensor.shape.numpy())


def _initializer(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a Reshape, which leaves its bytes as they are."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in ("Reshape", "Identity") else None
    return value


LIFTS = {
    (MICROSOFT, "MatMulNBits"): _Lifter.product,
    (MICROSOFT, "GatherBlockQuantized"): _Lifter.rows,
    ("", "DequantizeLinear"): _Lifter.matrix,
}
