"""How does a plan look as graphs of Google's Model Explorer?

One graph for each phase, of its schedule `default`. Launches are nodes; segments, and the layers in them, are
namespaces, which fold. An edge leads from the launch that last wrote a buffer or a state to each that reads it. Classes
and fields are called as in `model_explorer.graph_builder`, since Model Explorer only makes JSON of them: so graphs are
built, and tested, without its packages, which take half a gigabyte.
"""

from __future__ import annotations

from dataclasses import dataclass

from hjgc.plan_format import PlanFile
from hjgc.plan_format.structs import Launch, Operand, Segment
from hjgc.plan_format.text import operand_name
from hjgc.tools.explaining.chains import View, view
from hjgc.tools.explaining.facts import (
    Reasons,
    about_segment,
    costs,
    described,
    kernel_texts,
    reasons,
    shape,
    verdict,
)
from hjgc.tools.layers import layer_of
from hjgc.tools.prediction import Chip, prediction


@dataclass(frozen=True)
class KeyValue:
    key: str
    value: str


@dataclass(frozen=True)
class IncomingEdge:
    """`sourceNodeOutputId` and `targetNodeInputId` are places among a launch's operands."""

    sourceNodeId: str
    sourceNodeOutputId: str
    targetNodeInputId: str


@dataclass(frozen=True)
class MetadataItem:
    """Of the input or output `id`."""

    id: str
    attrs: list[KeyValue]


@dataclass(frozen=True)
class GraphNode:
    """`id` is the launch's number: names come from outside."""

    id: str
    label: str
    namespace: str
    attrs: list[KeyValue]
    incomingEdges: list[IncomingEdge]
    inputsMetadata: list[MetadataItem]
    outputsMetadata: list[MetadataItem]


@dataclass(frozen=True)
class Graph:
    """`groupNodeAttributes` are those of each segment, by its namespace."""

    id: str
    nodes: list[GraphNode]
    groupNodeAttributes: dict[str, dict[str, str]]


def graphs(file: PlanFile) -> list[Graph]:
    """A graph for each phase."""
    plan, debug, chip = file.plan, file.debug(), prediction(file.plan).chip
    return [_Phase(view(plan, phase, debug), chip).graph() for phase in plan.phases]


class _Phase:
    """Builds the graph of one phase, launch after launch."""

    def __init__(self, seen: View, chip: Chip | None) -> None:
        self._seen, self._plan, self._phase, self._chip = seen, seen.plan, seen.phase, chip
        self._written: dict[tuple[str, int], tuple[str, str]] = {}
        """By space and index, the node and output that wrote there last."""

    def graph(self) -> Graph:
        nodes: list[GraphNode] = []
        groups: dict[str, dict[str, str]] = {}
        for place, segment in enumerate(self._phase.schedule().segments):
            name, why = f"segment {place} ({verdict(segment)})", reasons(self._seen, segment)
            groups[name] = about_segment(self._seen, segment, why, self._chip)
            nodes += [self._node(number, segment, name, why) for number in segment.launches]
        return Graph(self._phase.name, nodes, groups)

    def _node(self, number: int, segment: Segment, group: str, why: Reasons) -> GraphNode:
        launch, judged = self._phase.launches[number], verdict(segment)
        label, namespace = _place(launch, group)
        values = [(f"{i}", operand) for i, operand in enumerate(launch.operands) if self._is_value(operand)]
        reads = [(i, operand) for i, operand in values if operand.access != "write"]
        writes = [(i, operand) for i, operand in values if operand.access != "read"]
        edges = [
            IncomingEdge(*self._written[o.space, o.index], i) for i, o in reads if (o.space, o.index) in self._written
        ]
        self._written |= {(o.space, o.index): (f"{number}", i) for i, o in writes}
        return GraphNode(
            id=f"{number}",
            # A namespace with one launch is not drawn, and with it would go the verdict.
            label=f"{label} (dynamic)" if judged == "dynamic" else label,
            namespace=namespace,
            attrs=self._attributes(launch, number, {"verdict": judged, "why": "\n".join(why.get(number, ()))}),
            incomingEdges=edges,
            inputsMetadata=[self._value(i, operand) for i, operand in reads],
            outputsMetadata=[self._value(i, operand) for i, operand in writes],
        )

    def _is_value(self, operand: Operand) -> bool:
        """Counters carry nothing from one launch to the next: each leaves them at zero."""
        if operand.space == "state":
            return self._plan.states[operand.index].kind != "counters"
        return operand.space == "buffer"

    def _attributes(self, launch: Launch, number: int, judged: dict[str, str]) -> list[KeyValue]:
        held = [operand for operand in launch.operands if operand.space in ("weight", "constant")]
        shown = {
            "launch": f"{number}: {launch.name}",
            "op": launch.op,
            **judged,
            **costs(self._plan, self._phase, [number], self._chip),
            "kernels": "\n".join(kernel_texts(self._plan, self._phase, number)),
            "weights": "\n".join(described(self._plan, self._phase, operand) for operand in held),
            "ONNX nodes": "\n".join(self._seen.nodes(number)),
            **{f"attribute {name}": f"{value}" for name, value in sorted(launch.attributes.items())},
        }
        return [KeyValue(name, value) for name, value in shown.items() if value]

    def _value(self, place: str, operand: Operand) -> MetadataItem:
        said = {
            "__tensor_tag": operand.role,
            "name": operand_name(self._plan, self._phase, operand.space, operand.index),
            "shape": shape(self._plan, self._phase, operand),
        }
        return MetadataItem(place, [KeyValue(name, value) for name, value in said.items()])


def _place(launch: Launch, group: str) -> tuple[str, str]:
    """Label and namespace. Without its layer's number in the labels, Model Explorer sees that layers are alike."""
    layer, name = layer_of(launch.name)
    return (name, group) if layer < 0 else (name or launch.op, f"{group}/layer {layer}")
