"""Which parts of the graph are attention, whatever operators spell it? Each lies between the products of query, key and
value and the product behind it; where it computes what our launches do, our words take its place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count

import onnx_ir as ir

from hjgc.compiler.attention.evaluate import SHAPES, Evaluator, Unknown, cone, linear_columns
from hjgc.compiler.attention.reading import Attention, Different, Reader, Refused, Region, operands
from hjgc.compiler.interface import Array, Interface, Role
from hjgc.compiler.rules.rule import DOMAIN, NODES_KEY, VALUE_KEY, Journal, is_op, node_name, source_nodes
from hjgc.compiler.tables import read_tensor

ATTENTION, PARTS = "attention", "attention_parts"
"""How the journal names what computes something else, and what lacks a part."""
CORES = ("Softmax", "Attention", "GroupQueryAttention", "MultiHeadAttention")
FEW_BYTES = 4096


@dataclass
class AttentionFinder:
    """Finds the regions of one graph and puts our words in their place."""

    model: ir.Model
    interface: Interface
    journal: Journal
    _found: dict[str, Attention] = field(default_factory=dict[str, Attention])
    _angles: dict[bytes, tuple[ir.Value, ir.Value]] = field(default_factory=dict[bytes, tuple[ir.Value, ir.Value]])

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(self.model, self.interface)

    def replace_all(self) -> set[ir.Node]:
        """Every region that does what our launches do. Of the others the journal says why not; their nodes are given
        back."""
        left: set[ir.Node] = set()
        for region in list(self._regions()):
            try:
                self._replace(region, self._read(region))
            except (Refused, Unknown) as why:
                rule = ATTENTION if isinstance(why, Different) else PARTS
                self.journal.add(rule, node_name(_producer(region.target)), str(why))
                left.update(region.nodes)
        return left

    def _regions(self) -> Iterator[Region]:
        products = [node.outputs[0] for node in self.model.graph if is_op(node, "Linear")]
        ends = [node for node in self.model.graph if node.op_type in ("Linear", "HostCall") and node.domain == DOMAIN]
        stops = {node.outputs[0] for node in ends}
        written = {value: cone([value], stops) for value in self.interface.presents}
        for target in dict.fromkeys(node.inputs[0] for node in ends):
            nodes = [] if target is None else cone([target], stops)
            if target is None or not any(node.op_type in CORES and node.domain != DOMAIN for node in nodes):
                continue
            taken = operands(nodes)
            linears = tuple(value for value in products if value in taken)
            presents = [value for value, inner in written.items() if (operands(inner) | {value}) & set(linears)]
            nodes = list(dict.fromkeys([*nodes, *(node for value in presents for node in written[value])]))
            taken = operands(nodes, shapes=False)
            caches: dict[Role, ir.Value] = {
                slot.role: value for value, slot in self.interface.caches.items() if value in taken
            }
            given_out: dict[Role, ir.Value] = {self.interface.presents[value].role: value for value in presents}
            yield Region(target, linears, caches, given_out, tuple(nodes))

    def _read(self, region: Region) -> Attention:
        """What the region computes; regions alike but for their weights are looked at once. Raises Refused."""
        self._check_caches(region)
        key = _fingerprint(region)
        if key not in self._found:
            try:
                self._found[key] = Reader(self.evaluator, self.interface, region).read()
            except (LookupError, ValueError, ArithmeticError) as error:  # what numbers that do not fit each other raise
                words = " ".join(str(error).split())[:120]
                raise Refused(f"its sizes do not fit each other ({words or type(error).__name__})") from error
        return self._found[key]

    def _check_caches(self, region: Region) -> None:
        """Each layer appends to caches of its own, and gives them out under the same number."""
        slots = {self.interface.caches[value].layer for value in region.caches.values()}
        slots |= {self.interface.presents[value].layer for value in region.presents.values()}
        taken = operands(region.nodes, shapes=False)
        count = sum(value in taken for value in self.interface.caches)
        if len(slots) > 1 or count not in (0, 2) or (region.caches.keys() != region.presents.keys() and region.caches):
            raise Refused("its caches are not one of keys and one of values, taken and given out with new rows")

    def _replace(self, region: Region, found: Attention) -> None:
        linears = [_producer(region.linears[i]) for i in found.order]
        norm = linears[0].inputs[0]
        if norm is None or not is_op(norm.producer(), "RmsNorm") or any(each.inputs[0] is not norm for each in linears):
            raise Refused("query, key and value are not products of one norm")
        biases = [linear.inputs[2] if len(linear.inputs) > 2 else None for linear in linears]
        if len({bias is None for bias in biases}) > 1:
            raise Refused("only some of q, k and v have a bias")
        before, filling = _producer(norm), [None] * (3 - len(linears))
        norms = [region.norms()[i] for i in found.norms]
        inputs = [
            *before.inputs[:2], *(linear.inputs[1] for linear in linears), *filling, *biases, *filling,
            *([norm.weight for norm in norms] or [None, None]), *self._rotary(region, found),
            region.caches.get("key"), region.caches.get("value"),
        ]  # fmt: skip
        flags = [linear.attributes.get_int("transposed", 0) for linear in linears]
        attributes = [
            ir.AttrFloat32("epsilon", before.attributes["epsilon"].as_float()),
            ir.AttrFloat32("head_norm_epsilon", norms[0].epsilon if norms else 0.0),
            ir.AttrInt64s("transposed", flags),
            ir.AttrInt64("heads", found.heads.query),
            ir.AttrInt64("kv_heads", found.heads.cache),
            ir.AttrInt64("head_dim", found.heads.size),
        ]
        made = ir.Node(DOMAIN, "AttentionInputs", inputs, attributes, num_outputs=3)
        self._insert(region, [before, *linears, *region.nodes], made, found)

    def _insert(self, region: Region, sources: list[ir.Node], made: ir.Node, found: Attention) -> None:
        scale, window = ir.AttrFloat32("scale", found.scale), ir.AttrInt64("window", found.window)
        attributes = [scale, window, ir.AttrInt64("untried", found.untried)]
        attention = ir.Node(DOMAIN, "Attention", made.outputs, attributes, num_outputs=1)
        names = dict.fromkeys(name for node in sources for name in source_nodes(node))
        made.metadata_props[NODES_KEY] = attention.metadata_props[NODES_KEY] = "\n".join(names)
        values = (_value(region, found, "query"), region.presents.get("key"), region.presents.get("value"))
        for mine, theirs in zip(made.outputs, values, strict=True):
            mine.metadata_props[VALUE_KEY] = "" if theirs is None else theirs.name or ""
        result, target = attention.outputs[0], region.target
        result.shape, result.type = target.shape, target.type
        result.metadata_props[VALUE_KEY] = target.name or ""
        self.model.graph.insert_after(_producer(target), [made, attention])
        target.replace_all_uses_with(result)
        for value in region.presents.values():
            self.model.graph.outputs.remove(value)

    def _rotary(self, region: Region, found: Attention) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines of all positions for its frequencies, made once."""
        key = found.frequencies.tobytes()
        if key not in self._angles:
            constant = self._constant(found.frequencies)
            angles = ir.Node(DOMAIN, "RotaryAngles", [self.interface.ids, constant], num_outputs=1)
            cos, sin = (ir.Node("", kind, angles.outputs, num_outputs=1) for kind in ("Cos", "Sin"))
            embedding = next((node for node in self.model.graph if is_op(node, "Embedding")), None)
            if embedding is None:
                raise Refused("no token is looked up in a table before it")
            self.model.graph.insert_after(embedding, [angles, cos, sin])
            for node, name in ((cos, "cos"), (sin, "sin")):
                value = _value(region, found, name)
                node.outputs[0].metadata_props[VALUE_KEY] = "" if value is None else value.name or ""
            angles.metadata_props[NODES_KEY] = "\n".join(_turning(region))
            self._angles[key] = cos.outputs[0], sin.outputs[0]
        return self._angles[key]

    def _constant(self, numbers: Array) -> ir.Value:
        """The initializer with these numbers; a new one if there is none."""
        graph = self.model.graph
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.shape != numbers.shape:
                continue
            if read_tensor(tensor).tobytes() == numbers.tobytes():
                return value
        names = chain(("inverse_frequencies",), (f"inverse_frequencies.{i}" for i in count(2)))
        name = next(name for name in names if name not in graph.initializers)
        made = ir.Value(name=name, const_value=ir.tensor(numbers, name=name))
        made.shape, made.dtype = ir.Shape(numbers.shape), ir.DataType.FLOAT
        graph.register_initializer(made)
        return made


def _value(region: Region, found: Attention, name: str) -> ir.Value | None:
    """The region's value that holds what our launches call so, if one does."""
    place = found.places.get(name)
    return None if place is None else region.nodes[place[0]].outputs[place[1]]


def _turning(region: Region) -> list[str]:
    """The nodes that make cosines of the positions, or take them from a table."""
    ends = [node for node in region.nodes if node.op_type in ("Cos", "Sin")]
    made = cone([value for node in ends for value in node.outputs], set())
    tables = [node for node in region.nodes if node.op_type in ("GroupQueryAttention", "RotaryEmbedding")]
    return list(dict.fromkeys(name for node in made or tables for name in source_nodes(node)))


def _producer(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    return node


def _fingerprint(region: Region) -> str:
    """Equal for regions that compute the same but for the numbers of their norms."""
    places = {value: f"linear {i} of {linear_columns(value)}" for i, value in enumerate(region.linears)}
    places |= {value: f"{role} cache {value.shape}" for role, value in region.caches.items()}
    lines, norms = list[str](), {norm.weight for norm in region.norms()}
    for i, node in enumerate(region.nodes):
        attributes = [f"{name}={attr.value}" for name, attr in sorted(node.attributes.items())]
        taken = [_place(value, node, places, norms) for value in node.inputs]
        lines.append(f"{node.domain}.{node.op_type}{taken}{attributes}")
        places |= {value: f"{i}.{j}" for j, value in enumerate(node.outputs)}
    ends: dict[Role | str, ir.Value] = {"target": region.target, **region.presents}
    lines += [f"{name} {places.get(value)}" for name, value in ends.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _place(value: ir.Value | None, node: ir.Node, places: Mapping[ir.Value, str], norms: set[ir.Value]) -> str:
    """What an operand is, within its region."""
    if value is None or value in places:
        return "" if value is None else places[value]
    tensor = value.const_value if value.is_initializer() else None
    if tensor is not None and value in norms:
        return f"norm {tensor.shape}"
    if tensor is not None and tensor.nbytes <= FEW_BYTES and not isinstance(tensor, ir.ExternalTensor):
        return f"{tensor.dtype} {tensor.shape} {tensor.numpy().tobytes().hex()}"
    return f"shape {value.shape}" if node.op_type in SHAPES and tensor is None else f"value {value.name}"
