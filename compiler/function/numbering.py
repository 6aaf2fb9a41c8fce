"""What is everything called in a sub-model, so that two which compute the same have the same bytes?

By its place alone: inputs x0, x1, ..., outputs y0, y1, ..., other values v0, v1, ... as they are met, sizes that have
names d0, d1, ... Nodes are numbered as the plan lists them, so that whoever reads a number finds the user's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx

NAME = "island"
"""Of every graph."""
UNCHECKED = ("value_info", "quantization_annotation")
"""What is said of values inside: ONNX Runtime finds it by itself, and of sequences onnx_ir writes other types."""
Scope = dict[str, str]
"""New names by old ones, of what one graph makes; empty until they are met."""


def numbered(data: bytes, places: Sequence[int | None]) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """The sub-model under such names, and those of its inputs and outputs. `places`: which of the plan's nodes each
    node of its graph is; None if none of them. What is inside of node 3, or behind it, is called 3.1, 3.2, ..."""
    model = onnx.load_from_string(data)
    graph, naming = model.graph, _Naming()
    inputs, outputs = tuple(f"x{i}" for i in range(len(graph.input))), tuple(f"y{i}" for i in range(len(graph.output)))
    known = _made(graph)
    known |= {value.name: name for value, name in zip((*graph.input, *graph.output), inputs + outputs, strict=True)}
    naming.rename(graph, known, [naming.fresh("extra") if place is None else str(place) for place in places])
    return model.SerializeToString(deterministic=True), inputs, outputs


def named(data: bytes, nodes: Sequence[str]) -> bytes:
    """A numbered sub-model with the plan's names of nodes before their numbers, for who reads what is said of it."""
    model = onnx.load_from_string(data)
    for node in _all_nodes(model.graph):
        number = node.name.split(".")[0]
        if number.isdecimal() and int(number) < len(nodes):
            node.name = f"{nodes[int(number)]} #{node.name}"
    return model.SerializeToString()


class _Naming:
    """Gives names while it walks a graph and the graphs of its nodes."""

    def __init__(self) -> None:
        self._given = Counter[str]()
        self._scopes: list[Scope] = []
        """Of the graphs around this place, the innermost last."""
        self._sizes: dict[str, str] = {}

    def fresh(self, kind: str) -> str:
        return f"{kind}{self._next(kind)}"

    def _next(self, kind: str) -> int:
        self._given[kind] += 1
        return self._given[kind] - 1

    def rename(self, graph: onnx.GraphProto, scope: Scope, labels: Sequence[str]) -> None:
        """In place. `labels`: what the name of each node begins with."""
        self._scopes.append(scope)
        _strip(graph, *UNCHECKED)
        graph.name = NAME
        self._rename_ends(graph.input)
        for node, label in zip(graph.node, labels, strict=True):
            self._rename_node(node, label)
        self._rename_ends(graph.output)
        for tensor in graph.initializer:
            _strip(tensor)
            tensor.name = self._value(tensor.name)
        graph.initializer.sort(key=lambda tensor: int(tensor.name[1:]))  # in the order in which they are met
        self._scopes.pop()

    def _rename_ends(self, values: Iterable[onnx.ValueInfoProto]) -> None:
        for value in values:
            _strip(value)
            value.name = self._value(value.name)
            self._rename_sizes(value.type)

    def _rename_node(self, node: onnx.NodeProto, label: str) -> None:
        _strip(node)
        behind = self._next(label)
        node.name = f"{label}.{behind}" if behind else label
        node.input[:] = [self._value(name) for name in node.input]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for tensor in _held(attribute, "t", "tensors"):
                _strip(tensor, "name")
            for kind in _held(attribute, "tp", "type_protos"):
                self._rename_sizes(kind)
            for graph in _held(attribute, "g", "graphs"):
                self.rename(graph, _made(graph), [label] * len(graph.node))
        node.output[:] = [self._value(name) for name in node.output]

    def _value(self, name: str) -> str:
        """As the innermost graph has it that makes it. What is left out stays without a name."""
        if not name:
            return ""
        scope = next((scope for scope in reversed(self._scopes) if name in scope), self._scopes[0])
        if not scope.get(name):
            scope[name] = self.fresh("v")
        return scope[name]

    def _rename_sizes(self, kind: onnx.TypeProto) -> None:
        for axis in _axes(kind):
            if axis.dim_param:
                axis.dim_param = self._sizes.setdefault(axis.dim_param, f"d{len(self._sizes)}")


def _made(graph: onnx.GraphProto) -> Scope:
    """What the graph makes, with no new names yet."""
    ends = (entry.name for entry in (*graph.input, *graph.initializer))
    return dict.fromkeys((*ends, *(name for node in graph.node for name in node.output)), "")


def _strip(message: Any, *more: str) -> None:
    """Without what only people read."""
    for field in ("doc_string", "metadata_props", *more):
        message.ClearField(field)


def _held(attribute: onnx.AttributeProto, one: str, several: str) -> list[Any]:
    """What the attribute has in the field for one of a kind, or in that for several."""
    return [*([getattr(attribute, one)] if attribute.HasField(one) else []), *getattr(attribute, several)]


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _held(attribute, "g", "graphs"):
                yield from _all_nodes(inner)


def _axes(kind: onnx.TypeProto) -> Iterator[Any]:
    """Of the tensor that is of this type, or that is an element of it."""
    match kind.WhichOneof("value"):
        case "tensor_type":
            yield from kind.tensor_type.shape.dim
        case "sparse_tensor_type":
            yield from kind.sparse_tensor_type.shape.dim
        case "sequence_type":
            yield from _axes(kind.sequence_type.elem_type)
        case "optional_type":
            yield from _axes(kind.optional_type.elem_type)
        case "map_type":
            yield from _axes(kind.map_type.value_type)
        case _:
            pass
