"""What do exporters spell out that has a word of its own? Casts between floats, norms, activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hjgc.compiler.attention.evaluate import Evaluator, Unknown
from hjgc.compiler.interface import Interface, Sizes
from hjgc.compiler.rules.rule import (
    DOMAIN,
    FLOATS,
    NODES_KEY,
    Journal,
    is_weight,
    node_name,
    source_nodes,
    static_shape,
)
from hjgc.compiler.tables import read_tensor

BOOLEAN = ("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")
WIDE = 1 << 15
CHOICES = ("Slice", "Gather", "Unsqueeze", "Squeeze", "Identity")
INTEGER = ("ArgMax", "ArgMin", "NonZero", "Shape", "Size")


def simplify(model: ir.Model, interface: Interface, journal: Journal) -> None:
    """Rewrite the graph in place. What a norm lacks to be ours, the journal says."""
    note_dtypes(model)
    spell_transposes(model)
    drop_float_casts(model, interface)
    for node in list(model.graph):
        if node.op_type in ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
            _lift_named_norm(model, node)
        elif node.op_type == "QuickGelu" and _number(node, "alpha", 1.702) == 1.0:
            _replace(model, [node], ir.Node(DOMAIN, "Silu", node.inputs, num_outputs=1), node.outputs[0])
        elif node.op_type == "FusedMatMul":
            _spell_product(model, node)
        elif node.op_type == "ReduceMean":
            _lift_norm(model, node, journal)
    drop_choice_of_rows(model, interface)
    RemoveUnusedNodesPass()(model)  # a use that nothing uses would keep patterns from matching


def spell_transposes(model: ir.Model) -> None:
    """A Transpose of a matrix that leaves its order out means [1, 0]."""
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "Transpose" and "perm" not in node.attributes else None
        if weight is not None and is_weight(weight) and len(static_shape(weight) or ()) == 2:
            node.attributes["perm"] = ir.AttrInt64s("perm", [1, 0])


def note_dtypes(model: ir.Model) -> None:
    """Element types where the file notes none: what an operator gives, else what its first typed operand has."""
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None:
                found = _dtype(node)
                if found is not None:
                    value.dtype = found


def _dtype(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in BOOLEAN:
        return ir.DataType.BOOL
    if node.op_type in INTEGER:
        return ir.DataType.INT64
    if node.op_type == "ConstantOfShape":
        return node.attributes["value"].as_tensor().dtype if "value" in node.attributes else ir.DataType.FLOAT
    operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return next((value.dtype for value in operands if value is not None and value.dtype is not None), None)


def drop_float_casts(model: ir.Model, interface: Interface) -> None:
    """The plan chooses what it computes in: a cast from one float to another says nothing."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
        if source is None or node.attributes.get_int("to", 0) not in FLOATS or source.dtype not in FLOATS:
            continue
        made = node.outputs[0]
        if made.is_graph_output():
            if source.is_graph_input() or source.is_graph_output() or source.is_initializer():
                continue
            _give_out(model, interface, made, source)
        made.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)


def drop_choice_of_rows(model: ir.Model, interface: Interface) -> None:
    """A plan computes the logits of the last row only: what chooses rows before the last product, the last among them,
    says nothing."""
    product = interface.logits.producer()
    if product is None or product.op_type != "MatMul" or product.inputs[0] is None:
        return
    rows = source = product.inputs[0]
    while (node := source.producer()) is not None and node.op_type in CHOICES and node.inputs[0] is not None:
        source = node.inputs[0]
    if source is rows or not _keeps_last_row(Evaluator(model, interface), rows, source, interface):
        return
    product.replace_input_with(0, source)


def _keeps_last_row(evaluator: Evaluator, rows: ir.Value, source: ir.Value, interface: Interface) -> bool:
    """Tried at some sizes, and with rows wider than any that is cut."""
    tried = [interface.possible(sizes) for sizes in (Sizes(0, 1), Sizes(0, 5), Sizes(0, 700), Sizes(3, 4), Sizes(6, 1))]
    found = [sizes for sizes in tried if sizes is not None]
    for sizes in found:
        given = np.random.default_rng(0).standard_normal((sizes.batch, sizes.new, WIDE), np.float32)
        try:
            (chosen,) = evaluator.run([rows], {source: given}, sizes)
        except Unknown:
            return False
        if chosen.ndim != 3 or not np.array_equal(chosen[:, -1], given[:, -1]):
            return False
    return bool(found)


def _give_out(model: ir.Model, interface: Interface, made: ir.Value, source: ir.Value) -> None:
    """`source` takes the place and the name of an output."""
    model.graph.outputs[model.graph.outputs.index(made)] = source
    name, made.name = made.name, f"{made.name}.cast"
    source.name = name
    if interface.logits is made:
        interface.logits = source
    if made in interface.presents:
        interface.presents[source] = interface.presents.pop(made)


def _lift_named_norm(model: ir.Model, node: ir.Node) -> None:
    """(Skip)SimplifiedLayerNormalization over the last axis, of ONNX Runtime's whatever its domain: the sum, then the
    norm."""
    skip = node.op_type.startswith("Skip")
    x, before = node.inputs[0], list[ir.Node]()
    weight = node.inputs[2 if skip else 1]
    last = node.attributes.get_int("axis", -1) in (-1, 2)
    used = any(value.uses() or value.is_graph_output() for value in node.outputs[1:3])
    if node.domain not in ("", "com.microsoft") or not last or used or len(static_shape(weight) or ()) != 1:
        return
    if skip:
        add = ir.Node("", "Add", [x, node.inputs[1]], num_outputs=1)
        before, x = [add], add.outputs[0]
        x.shape, x.type = node.inputs[0].shape if node.inputs[0] else None, node.outputs[0].type
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            return
    epsilon = ir.AttrFloat32("epsilon", _number(node, "epsilon", 1e-5))
    norm = ir.Node(DOMAIN, "RmsNorm", [x, weight], [epsilon], num_outputs=1)
    norm.outputs[0].shape, norm.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    for made in (*before, norm):
        made.metadata_props[NODES_KEY] = "\n".join(source_nodes(node))
    model.graph.insert_before(node, [*before, norm])
    node.outputs[0].replace_all_uses_with(norm.outputs[0])
    if skip and len(node.outputs) > 3 and x is not None:
        node.outputs[3].replace_all_uses_with(x)
    model.graph.remove(node, safe=True)


def _spell_product(model: ir.Model, node: ir.Node) -> None:
    """FusedMatMul of a plain matrix or a transposed one."""
    plain = ("transA", "transBatchA", "transBatchB")
    alpha = node.attributes.get("alpha")
    if any(node.attributes.get_int(name, 0) for name in plain) or (alpha is not None and alpha.as_float() != 1.0):
        return
    x, weight = node.inputs
    made = list[ir.Node]()
    if node.attributes.get_int("transB", 0):
        made.append(ir.Node("", "Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])], num_outputs=1))
        weight = made[0].outputs[0]
    made.append(ir.Node("", "MatMul", [x, weight], num_outputs=1))
    put_in_place(model.graph, node, made)


def put_in_place(graph: ir.Graph, node: ir.Node, made: list[ir.Node]) -> None:
    """These nodes in place of one; the last gives what it gave, under the same name."""
    for each in made:
        each.metadata_props[NODES_KEY] = "\n".join(source_nodes(node))
    result, given = made[-1].outputs[0], node.outputs[0]
    result.shape, result.type, result.name = given.shape, given.type, given.name
    graph.insert_before(node, made)
    given.replace_all_uses_with(result, replace_graph_outputs=True)
    given.name = None
    graph.remove(node, safe=True)


def _lift_norm(model: ir.Model, mean: ir.Node, journal: Journal) -> None:
    """x / sqrt(mean(x * x) + epsilon) * weight, in any of the ways to write it."""
    try:
        x, weight, epsilon, nodes = _norm_from(mean)
    except LookupError as why:
        journal.add("norm", node_name(mean), str(why))
        return
    made = ir.Node(DOMAIN, "RmsNorm", [x, weight], [ir.AttrFloat32("epsilon", epsilon)], num_outputs=1)
    _replace(model, nodes, made, nodes[-1].outputs[0])


def _norm_from(mean: ir.Node) -> tuple[ir.Value, ir.Value, float, list[ir.Node]]:
    """x, weight, epsilon and the nodes from the square to the last product. Raises LookupError."""
    square, x = _square(mean.inputs[0])
    if not mean.attributes.get_int("keepdims", 1) or (_axes(mean) != [-1] and _axes(mean) != [_rank(x) - 1]):
        raise LookupError("its mean is not over the last axis, kept")
    add, epsilon = _with_constant(_only_user(mean), "Add")
    root = _only_user(add)
    if root.op_type != "Sqrt":
        raise LookupError("no square root is taken of its mean square")
    scaled, between = _scaled(root, x)
    product = _only_user(scaled)
    weight = _other(product, scaled.outputs[0])
    if product.op_type != "Mul" or not is_weight(weight) or len(static_shape(weight) or ()) != 1:
        raise LookupError("it is not multiplied by a weight of one axis")
    return x, weight, epsilon, [square, mean, add, root, *between, scaled, product]


def _square(value: ir.Value | None) -> tuple[ir.Node, ir.Value]:
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Pow" and _scalar(node.inputs[1]) == 2.0 and node.inputs[0] is not None:
        return node, node.inputs[0]
    if node is not None and node.op_type == "Mul" and node.inputs[0] is node.inputs[1] and node.inputs[0] is not None:
        return node, node.inputs[0]
    raise LookupError("its mean is not one of squares")


def _scaled(root: ir.Node, x: ir.Value) -> tuple[ir.Node, list[ir.Node]]:
    """x over the root: the node that makes it, and those between."""
    user = _only_user(root)
    if user.op_type == "Div" and user.inputs[0] is x and user.inputs[1] is root.outputs[0]:
        return user, []
    one = user.op_type == "Div" and user.inputs[1] is root.outputs[0] and _scalar(user.inputs[0]) == 1.0
    if user.op_type == "Reciprocal" or one:
        product = _only_user(user)
        if product.op_type == "Mul" and x in product.inputs:
            return product, [user]
    raise LookupError("what is normalised is not divided by the root")


def _number(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else found.as_float()


def _axes(mean: ir.Node) -> list[int]:
    if "axes" in mean.attributes:
        return list(mean.attributes["axes"].as_ints())
    value = mean.inputs[1] if len(mean.inputs) > 1 else None
    tensor = None if value is None else value.const_value
    return [] if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def _with_constant(node: ir.Node, op_type: str) -> tuple[ir.Node, float]:
    for value in node.inputs:
        number = _scalar(value)
        if node.op_type == op_type and number is not None:
            return node, number
    raise LookupError("no constant is added to its mean square")


def _only_user(node: ir.Node) -> ir.Node:
    users = {user for user, _ in node.outputs[0].uses()}
    if len(users) != 1 or node.outputs[0].is_graph_output():
        raise LookupError(f"the result of {node.op_type} is used elsewhere too")
    return users.pop()


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    for operand in node.inputs:
        if operand is not value and operand is not None:
            return operand
    raise LookupError("it is multiplied by itself")


def _scalar(value: ir.Value | None) -> float | None:
    tensor = None if value is None or not value.is_initializer() else value.const_value
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(np.asarray(read_tensor(tensor), dtype=np.float64).reshape(-1)[0])


def _replace(model: ir.Model, nodes: list[ir.Node], made: ir.Node, result: ir.Value) -> None:
    """`made` in place of these nodes, of which the last makes `result`."""
    made.metadata_props[NODES_KEY] = "\n".join(dict.fromkeys(name for node in nodes for name in source_nodes(node)))
    made.outputs[0].shape, made.outputs[0].type = result.shape, result.type
    model.graph.insert_after(nodes[-1], [made])
    result.replace_all_uses_with(made.outputs[0])
