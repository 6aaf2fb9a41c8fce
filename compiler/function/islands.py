"""Which nodes that are no launches of ours go to ONNX Runtime together, and in what order is everything run?

Launches that are ready run first, then all nodes of islands that are ready, and so on: so each island is as large as
its dependencies allow, and static segments are long. What is ready at once and not connected makes islands of its own.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from hjgc.compiler.function import contents
from hjgc.compiler.function.contents import Contents
from hjgc.compiler.function.lowering import Context, NotNative, drawn, draws
from hjgc.compiler.function.numbering import named, numbered
from hjgc.compiler.program import Network, Tensor
from hjgc.compiler.rules.rule import node_name, source_nodes
from hjgc.compiler.tables import ALL_DTYPES, read_tensor
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import Island

INSIDE_BYTES = 1 << 20
"""Initializers up to this size lie inside the sub-model; larger ones are weights of the plan."""
MOST_REASONS = 16
"""Of one island."""
OWN_DOMAIN = "hjgc"
"""Of operators that ONNX Runtime does not know."""
IDLE = "hjgc/idle"
BERNOULLI_NODES = 4
"""At least those that ONNX Runtime computes a Bernoulli by. It puts them behind all others of the graph; one draws."""
MANY_NODES = 512
"""Names of nodes that an island keeps."""
FIRST = {ReasonCode.RANDOM: 0, ReasonCode.NO_TEMPLATE: 2}
"""Of an island's reasons these come before or after others."""


@dataclass
class Group:
    """The nodes of one island, in order; `helpers` compute sizes that they want and nobody else computes."""

    nodes: list[ir.Node]
    helpers: list[ir.Node]


def used_values(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its graphs included, each once, in order."""
    found: dict[ir.Value, None] = {value: None for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            found.update(dict.fromkeys(_free(graph)))
    return list(found)


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _free(graph: ir.Graph) -> Iterator[ir.Value]:
    """What a graph uses and does not make."""
    made = {*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)}
    for node in graph:
        yield from (value for value in used_values(node) if value not in made)
    yield from (value for value in graph.outputs if value not in made)


class Partition:
    """Orders the nodes of a graph: `order` has launches (nodes) and islands (groups)."""

    def __init__(
        self,
        graph: ir.Graph,
        nodes: Iterable[ir.Node],
        foreign: set[ir.Node],
        contents_of: Callable[[ir.Value], Contents | None],
    ) -> None:
        """`nodes`: those that run, in order; of them `foreign` are none of ours. `contents_of`: the sizes in a value
        that need not be computed, if they are known."""
        self._contents, self._foreign = contents_of, foreign
        self._nodes = list(nodes)
        self._running = set(self._nodes)
        self._users: dict[ir.Value, list[ir.Node]] = {}
        for node in graph:
            for value in used_values(node):
                self._users.setdefault(value, []).append(node)
        self._needs = {node: self._dependencies(node) for node in self._nodes}

    def order(self) -> list[ir.Node | Group]:
        done: set[ir.Node] = set()
        result: list[ir.Node | Group] = []
        left = self._nodes
        while left:
            ours, left = self._ready(left, done, foreign=False)
            result += ours
            theirs, left = self._ready(left, done, foreign=True)
            result += [Group(nodes, self._helpers(nodes)) for nodes in self._components(theirs)]
            assert ours or theirs, "nodes in order are ready in order"
        return result

    def wanted(self, value: ir.Value, own: set[ir.Node]) -> bool:
        """Does anybody but these nodes use the value, in a graph of its own or not?"""
        return value.is_graph_output() or any(user not in own for user in self._users.get(value, ()))

    def _ready(self, nodes: list[ir.Node], done: set[ir.Node], *, foreign: bool) -> tuple[list[ir.Node], list[ir.Node]]:
        """Those of one kind that need nothing of the other any more, and the rest."""
        ready: list[ir.Node] = []
        rest: list[ir.Node] = []
        for node in nodes:
            if (node in self._foreign) == foreign and self._needs[node] <= done:
                ready.append(node)
                done.add(node)
            else:
                rest.append(node)
        return ready, rest

    def _dependencies(self, node: ir.Node) -> set[ir.Node]:
        """The running nodes that make what it reads, by way of what only computes sizes."""
        found: set[ir.Node] = set()
        waiting, met = [node], {node}
        while waiting:
            for value in used_values(waiting.pop()):
                maker = value.producer()
                if maker is None or maker in met:
                    continue
                met.add(maker)
                if maker in self._running:
                    found.add(maker)
                elif not self._is_number(value):
                    waiting.append(maker)
        return found

    def _is_number(self, value: ir.Value) -> bool:
        found = self._contents(value)
        return found is not None and contents.numbers(found) is not None

    def _helpers(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """Nodes that compute the sizes which these read, in order."""
        found: dict[ir.Node, None] = {}

        def visit(node: ir.Node) -> None:
            for value in used_values(node):
                maker = value.producer()
                if maker is not None and maker not in self._running and not self._is_number(value):
                    visit(maker)
                    found[maker] = None

        for node in nodes:
            visit(node)
        return list(found)

    def _components(self, nodes: list[ir.Node]) -> list[list[ir.Node]]:
        """Those together, in order, of which one reads what another makes."""
        owner = {node: i for i, node in enumerate(nodes)}

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        parent = list(range(len(nodes)))
        for i, node in enumerate(nodes):
            for value in used_values(node):
                maker = value.producer()
                if maker in owner:
                    parent[root(owner[maker])] = root(i)
        groups: dict[int, list[ir.Node]] = {}
        for i, node in enumerate(nodes):
            groups.setdefault(root(i), []).append(node)
        return list(groups.values())


@dataclass
class SubModel:
    """An island's model, the names of what it takes and gives, in order, and the nodes that it computes; `places`:
    which of these each node of its graph is, None for one that is there for others. `seeds`: by so many places in the
    graph ONNX Runtime may seed what it draws; `inner_seeds`: in that of a branch or body at most."""

    data: bytes
    inputs: list[str]
    outputs: list[str]
    nodes: tuple[str, ...]
    places: tuple[int | None, ...]
    seeds: int = 0
    inner_seeds: int = 0


def build(
    model: ir.Model, context: Context, group: Group, wanted: Callable[[ir.Value, set[ir.Node]], bool]
) -> tuple[SubModel, list[ir.Value], list[ir.Value]]:
    """The nodes as a model of their own, and the values of the whole model that it takes and gives. `wanted(value,
    nodes)`: does anybody but these nodes use it?"""
    members = [*group.helpers, *group.nodes]
    own = set(members)
    proto = bare_model(model, "island")
    graph = proto.graph
    graph.node.extend(map(ir.serde.serialize_node, members))
    inputs: list[ir.Value] = []
    for value in dict.fromkeys(value for node in members for value in used_values(node)):
        if value.producer() in own:
            continue
        inside = _inside(context, value)
        if inside is None:
            inputs.append(value)
        else:
            graph.initializer.append(inside)
    graph.input.extend(_declared(context, value) for value in inputs)
    outputs = [value for node in group.nodes for value in node.outputs if value.name and wanted(value, own)]
    graph.output.extend(onnx.ValueInfoProto(name=value.name or "") for value in outputs)  # ONNX Runtime finds types
    names = tuple(clean(node_name(node)) for node in group.nodes[:MANY_NODES])
    places = (*[None] * len(group.helpers), *range(len(group.nodes)))
    taken, given = ([value.name or "" for value in values] for values in (inputs, outputs))
    data = proto.SerializeToString(deterministic=True)
    inner = max((_seeds(list(graph)) for node in group.nodes for graph in _inner(node)), default=0)
    return SubModel(data, taken, given, names, places, _seeds(members), inner), inputs, outputs


def bare_model(model: ir.Model, name: str) -> onnx.ModelProto:
    """A model with an empty graph of that name, of the same operator sets."""
    proto = onnx.ModelProto(ir_version=min(model.ir_version or 10, 11))
    for domain, version in sorted(model.opset_imports.items()):
        if domain != OWN_DOMAIN:
            proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    proto.graph.name = name
    return proto


def _seeds(nodes: Sequence[ir.Node]) -> int:
    if not any(map(draws, nodes)):
        return 0
    return len(nodes) + BERNOULLI_NODES * sum(node.op_type == "Bernoulli" for node in nodes)


def _inside(context: Context, value: ir.Value) -> onnx.TensorProto | None:
    """An initializer to lie in the sub-model: small, of a type that no weight has, or found by the compiler."""
    name = value.name or ""
    tensor = value.const_value if value.is_initializer() else None
    if tensor is not None:
        if tensor.nbytes > INSIDE_BYTES and tensor.dtype in ALL_DTYPES:
            return None
        if isinstance(tensor, ir.ExternalTensor):
            raw = read_tensor(tensor).tobytes()
            return onnx.helper.make_tensor(name, tensor.dtype.value, tuple(tensor.shape.numpy()), raw, raw=True)
        proto = ir.serde.serialize_tensor(tensor)
        proto.name = name
        return proto
    found = context.contents(value)
    numbers = None if found is None else contents.numbers(found)
    if found is None or numbers is None or value.dtype is None:
        return None
    return onnx.numpy_helper.from_array(np.array(numbers, value.dtype.numpy()).reshape(found.shape), name)


def _declared(context: Context, value: ir.Value) -> onnx.ValueInfoProto:
    """An input with its type, its shape as far as it has numbers."""
    proto = ir.serde.serialize_value(value)
    proto.ClearField("metadata_props")
    held = context.hold(value)
    if value.type is None and isinstance(held, Tensor):
        proto.type.tensor_type.elem_type = next(kind for kind, dtype in ALL_DTYPES.items() if dtype == held.dtype)
    if proto.type.HasField("tensor_type"):
        known = context.shape(value)
        proto.type.tensor_type.ClearField("shape")
        if known is not None:
            proto.type.tensor_type.shape.SetInParent()  # of a scalar too, which has no axes
            for axis in known:
                place = proto.type.tensor_type.shape.dim.add()
                if isinstance(axis, int):
                    place.dim_value = axis
    return proto


def causes(why: Mapping[ir.Node, NotNative]) -> Iterator[tuple[ReasonCode, tuple[str, ...]]]:
    """Why an island of these nodes is dynamic: one cause for each code and operator, from a node to what is behind.
    What it draws comes first, so that it is said in any case: nobody may run such an island to check another."""
    met: set[tuple[ReasonCode, str]] = set()
    for path, reason in sorted(_reasons(why), key=lambda entry: FIRST.get(entry[1].code, 1)):
        if (reason.code, path[-1].op_type) not in met and len(met) < MOST_REASONS:
            met.add((reason.code, path[-1].op_type))
            nodes = (f"ONNX node {clean(source_nodes(node)[0])}" for node in path)
            about = (f"ONNX value {clean(reason.about)}",) if reason.about else ()
            yield reason.code, (*nodes, f"since {clean(reason.why)}", *about)


def _reasons(why: Mapping[ir.Node, NotNative]) -> Iterator[tuple[tuple[ir.Node, ...], NotNative]]:
    """Those of nodes, and of nodes inside of them that draw random numbers."""
    for node, reason in why.items():
        yield (node,), reason
        for inner in (inner for graph in _inner(node) for inner in graph):
            if draws(inner):
                yield (node, inner), drawn(inner)


def _inner(node: ir.Node) -> Iterator[ir.Graph]:
    """Branches and bodies, those of each other too."""
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            yield graph
            for inner in graph:
                yield from _inner(inner)


def clean(text: str) -> str:
    """On one line, printable, not too long for a plan."""
    return "".join(sign if sign.isprintable() else "_" for sign in text)[:500]


def table(models: list[SubModel]) -> tuple[tuple[Island, ...], bytes]:
    """The plan's islands and the section that holds them; those that compute the same lie there once."""
    section, offsets = bytearray(), dict[bytes, int]()
    islands: list[Island] = []
    seeds = max((model.inner_seeds for model in models), default=0)
    for i, model in enumerate(models):
        if model.seeds:
            model, seeds = _apart(model, seeds), seeds + model.seeds
        data, inputs, outputs = numbered(model.data, model.places)
        if data not in offsets:
            offsets[data] = len(section)
            section += data
        digest = hashlib.sha256(data).hexdigest()
        islands.append(Island(f"island.{i}", offsets[data], len(data), digest, inputs, outputs, model.nodes))
    return tuple(islands), bytes(section)


def _apart(model: SubModel, before: int) -> SubModel:
    """With so many nodes that do nothing before its own: what is given no seed, ONNX Runtime seeds by its place in the
    graph, so that two islands would draw the same numbers."""
    proto, ordered = onnx.load_from_string(model.data), onnx.GraphProto()
    ordered.node.extend(onnx.helper.make_node("Identity", [IDLE], [f"{IDLE}.{i}"]) for i in range(before))
    ordered.node.extend(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(ordered.node)
    if before:
        proto.graph.initializer.append(onnx.helper.make_tensor(IDLE, onnx.TensorProto.INT64, [1], [0]))
    return replace(model, data=proto.SerializeToString(), places=(*[None] * before, *model.places))


def try_islands(network: Network, path: Path) -> None:
    """Have ONNX Runtime take each sub-model, if it is installed. Raises CompileError with its words and the nodes."""
    if find_spec("onnxruntime") is None:
        return
    met: dict[str, Island] = {}
    for island in network.islands:
        met.setdefault(island.sha256, island)
    for island in met.values():
        data = network.island_bytes[island.offset : island.offset + island.length]
        try:
            open_island(data, island.nodes, path)
        except CompileError:
            open_island(named(data, island.nodes), island.nodes, path)  # for words that people understand
            raise


def open_island(data: bytes, nodes: Sequence[str], path: Path) -> Any:
    """ONNX Runtime's session of a sub-model. If it takes none, a CompileError with its words and the nodes."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
        words = " ".join(str(error).split())[:400]
        problem = f"expected nodes that hjgc or ONNX Runtime computes, found others ({words})"
        step = "install the onnxruntime that has these operators, or export the model without them"
        raise CompileError(path, problem, field=f"node {', '.join(nodes[:5])}", next_step=step) from None
