"""Which nodes of a recognised decoder do no rules cover, and may ONNX Runtime compute them between two launches?

What is left over may become an island if it works on rows alone: what it reads of the graph are activations
[1, tokens, H] and weights, and what it gives are activations that launches read. A plan computes a prompt in parts and
an answer row by row, so each row must be what it is without the others: `foreign_model.py` tries that on made-up
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from hjgc.compiler.function.islands import Group, Partition, used_values
from hjgc.compiler.function.lowering import NotNative, rule_of, unknown_operator
from hjgc.compiler.function.rules import register_all
from hjgc.compiler.rules.rule import DOMAIN, NODES_KEY, node_name, source_nodes, static_shape
from hjgc.plan_format.reasons import ReasonCode

ISLAND = "Island"
ROW_WORDS: Mapping[str, int] = {
    "Embedding": 0, "Attention": 0, "Linear": 0, "GatedLinear": 0, "RmsNorm": 0, "HostCall": 0, ISLAND: -1,
}  # fmt: skip
"""Our words that give rows, and at which result: -1 for all."""
READS: Mapping[str, tuple[int, ...]] = {
    "AttentionInputs": (0,), "Linear": (0, 3), "GatedLinear": (0,), "RmsNorm": (0,), "VocabularyLogits": (0,),
    "HostCall": (0,),
}  # fmt: skip
"""Our words that read rows, and in which operands."""
TOKENS = "tokens"
Axes = tuple[int | str, ...]
"""Sizes: numbers, or TOKENS for the rows of a call."""
READERS = ("Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements")
CHOOSERS = ("TopK", "ArgMax", "ArgMin", "NonZero")


@dataclass(frozen=True)
class Foreign:
    """Nodes that an island computes: what it takes and gives, in order, and how many columns each result has. Of nodes
    in `sizes` that look at the shape of a model's input, what they find."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    columns: tuple[int, ...]
    sizes: Mapping[ir.Node, Axes]
    why: Mapping[ir.Node, NotNative]


def lift_foreign(model: ir.Model, leftovers: Sequence[ir.Node], ids: ir.Value) -> list[Foreign] | str:
    """Put an `Island` in place of the nodes that no rule covers. What stands in the way, if they cannot be: nothing is
    changed then. What follows from the number of tokens alone, every island computes for itself."""
    _name_values(leftovers)
    sizes = _size_nodes(leftovers, ids)
    running = [node for node in leftovers if node not in sizes]
    words = set(model.graph) - set(leftovers)
    found: list[Foreign] = []
    nodes = [node for node in model.graph if node not in sizes]
    partition = Partition(model.graph, nodes, set(running), lambda value: None)
    for group in (entry for entry in partition.order() if isinstance(entry, Group)):
        made = _foreign(group, words, sizes, partition)
        if isinstance(made, str):
            return made
        found.append(made)
    renamed: dict[ir.Value, ir.Value] = {}
    for number, foreign in enumerate(found):
        found[number] = replace(foreign, inputs=tuple(renamed.get(value, value) for value in foreign.inputs))
        renamed |= _replace(model, found[number], number)
    model.graph.remove(leftovers)
    return found


def _size_nodes(nodes: Sequence[ir.Node], ids: ir.Value) -> dict[ir.Node, Axes]:
    """Those that depend on nothing but sizes of the batch, which is 1, and of the call. Of a node that looks at a shape
    what it finds; of one that computes with sizes nothing."""
    found: dict[ir.Node, Axes] = {}
    for node in nodes:
        operands = [value for value in node.inputs if value is not None and not value.is_initializer()]
        seen = _seen_axes(node, ids)
        if seen or (operands and all(value.producer() in found for value in operands)):
            found[node] = seen
    return found


def _seen_axes(node: ir.Node, ids: ir.Value) -> Axes:
    """The axes of a model's input that a Shape node gives, if those are known."""
    value = node.inputs[0] if node.op_type == "Shape" else None
    if value is None or not value.is_graph_input() or value.shape is None or ids.shape is None:
        return ()
    named = dict(zip(map(str, reversed(ids.shape)), (TOKENS, 1), strict=False))
    attributes = node.attributes
    part = slice(attributes.get_int("start", 0), attributes.get_int("end", len(value.shape)))
    axes = [axis if isinstance(axis, int) else named.get(str(axis)) for axis in tuple(value.shape)[part]]
    known = tuple(axis for axis in axes if axis is not None)
    return known if len(known) == len(axes) else ()


def _name_values(nodes: Sequence[ir.Node]) -> None:
    """Sub-models find values by name, which those that rules made have not."""
    values = dict.fromkeys(value for node in nodes for value in (*used_values(node), *node.outputs))
    for number, value in enumerate(values):
        if not value.name:
            value.name = f"~{number}"


def _foreign(group: Group, words: set[ir.Node], sizes: Mapping[ir.Node, Axes], partition: Partition) -> Foreign | str:
    nodes = [*group.helpers, *group.nodes]
    own = set(nodes)
    reading = [node for node in nodes if not sizes.get(node)]
    inputs = [v for v in dict.fromkeys(v for node in reading for v in used_values(node)) if v.producer() not in own]
    taken = [value for value in inputs if not value.is_initializer()]
    for value in taken:
        problem = _no_rows(value)
        if problem:
            return f"{node_name(group.nodes[0])} reads {value.name}, {problem}"
    outputs = [value for node in group.nodes for value in node.outputs if partition.wanted(value, own)]
    columns: list[int] = []
    for value in outputs:
        width = _width(value, words)
        if isinstance(width, str):
            return f"{value.name}, which {node_name(group.nodes[-1])} gives, {width}"
        columns.append(width)
    if not taken:
        return f"{node_name(group.nodes[0])} reads no activation"
    found = {node: axes for node in nodes if (axes := sizes.get(node))}
    return Foreign(tuple(nodes), tuple(taken), tuple(outputs), tuple(columns), found, _reasons(group.nodes, own))


def _reasons(nodes: Sequence[ir.Node], own: set[ir.Node]) -> dict[ir.Node, NotNative]:
    """Why the nodes are an island: what has a rule is there for the company it keeps, if anything has none."""
    register_all()
    why = {node: _why(node, own) for node in nodes}
    lacking = {
        node: reason
        for node, reason in why.items()
        if reason.code is not ReasonCode.NO_TEMPLATE or rule_of(node) is None
    }
    return lacking or why


def _why(node: ir.Node, own: set[ir.Node]) -> NotNative:
    """Why no launch computes the node: it may read what another node chooses, as experts are by their router."""
    chooser = _chooser(node, own) if node.op_type in READERS else None
    if chooser is None:
        return unknown_operator(node)
    chosen = next((value.name for value in chooser.inputs if value is not None), None)
    why = f"what it reads is chosen by ONNX node {node_name(chooser)}, {chooser.op_type}"
    return NotNative(ReasonCode.DATA_DEPENDENT_ADDRESS, why, chosen or "")


def _chooser(node: ir.Node, own: set[ir.Node]) -> ir.Node | None:
    """The node of these that the numbers come from by which the node reads."""
    waiting, met = [value for value in node.inputs[1:2] if value is not None], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        maker = value.producer()
        if maker is None or maker not in own or value in met:
            continue
        if maker.op_type in CHOOSERS:
            return maker
        met.add(value)
        waiting += [operand for operand in maker.inputs if operand is not None]
    return None


def _no_rows(value: ir.Value) -> str:
    """Why the value is none of rows; nothing if it is."""
    maker = value.producer()
    if maker is None:
        return "an input of the model"
    if maker.domain != DOMAIN or maker.op_type not in ROW_WORDS:
        return "" if _is_foreign(maker) else f"which {maker.op_type} gives"
    place = ROW_WORDS[maker.op_type]
    return "" if place in (-1, maker.outputs.index(value)) else f"which {maker.op_type} gives"


def _is_foreign(maker: ir.Node) -> bool:
    """A node of another island to be: its own check says what its results are."""
    return maker.domain != DOMAIN and maker.op_type not in ("Cos", "Sin")


def _width(value: ir.Value, words: set[ir.Node]) -> int | str:
    """The columns of its rows, as what reads them says, or its own shape; else what is wrong with it."""
    if value.is_graph_output():
        return "is an output of the model"
    found: set[int] = set()
    for user, place in value.uses():
        if user not in words:
            continue
        if place not in READS.get(user.op_type, ()):
            return f"is no row operand of {user.op_type}"
        width = _read_width(user, place)
        if width is not None:
            found.add(width)
    shape = static_shape(value)
    if shape is not None and len(shape) == 3 and shape[2] is not None:
        found.add(shape[2])
    if len(found) != 1:
        return f"has rows of an unknown width (found {sorted(found) or 'none'})"
    return found.pop()


def _read_width(user: ir.Node, place: int) -> int | None:
    """How wide the rows are that a word reads."""
    if user.op_type in ("RmsNorm", "AttentionInputs", "GatedLinear", "VocabularyLogits"):
        return (static_shape(user.inputs[1]) or (None,))[-1]
    if user.op_type != "Linear":
        return None
    shape = static_shape(user.inputs[1]) or (None, None)
    outputs, inputs = shape[::-1] if user.attributes.get_int("transposed", 0) else shape
    return inputs if place == 0 else outputs


def _replace(model: ir.Model, foreign: Foreign, number: int) -> dict[ir.Value, ir.Value]:
    """An `Island` node in place of the nodes, which keep their operands for the sub-model. What it gives in place of
    each of their results: others read that from now on, also where they belong to an island of their own."""
    attributes = [ir.AttrInt64("number", number)]
    made = ir.Node(DOMAIN, ISLAND, list(foreign.inputs), attributes, num_outputs=len(foreign.outputs))
    names = dict.fromkeys(name for node in foreign.nodes for name in source_nodes(node))
    made.metadata_props[NODES_KEY] = "\n".join(names)
    made.name = f"island.{number}"
    for mine, theirs in zip(made.outputs, foreign.outputs, strict=True):
        mine.shape, mine.type, mine.name = theirs.shape, theirs.type, f"{theirs.name}~rows"
    model.graph.insert_after(foreign.nodes[-1], [made])
    own = set(foreign.nodes)
    for mine, theirs in zip(made.outputs, foreign.outputs, strict=True):
        for user, place in tuple(theirs.uses()):
            if user not in own and user is not made:
                user.replace_input_with(place, mine)
    return dict(zip(foreign.outputs, made.outputs, strict=True))
