"""How does a plan look as an ONNX model, so that a viewer of ONNX models can show it?

The main graph holds the schedule `default` of every phase, segment after segment. Each segment is a function, whose
nodes are launches: `op_type` is the op, the domain `hjgc`. Edges are buffers and small states; each write makes a new
version of a value, as ONNX wants it. Weights, constants, caches and the parameter block are named in attributes
instead: as inputs they would hide the network behind hundreds of boxes. The model is to look at; nothing runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper

from hjgc.plan_format import DebugMap, PlanFile
from hjgc.plan_format.sizes import Expression, spell
from hjgc.plan_format.structs import Launch, Operand, Plan, Segment
from hjgc.plan_format.text import operand_name
from hjgc.tools.explaining.chains import View, view
from hjgc.tools.explaining.facts import (
    about_segment,
    costs,
    described,
    kernel_texts,
    reasons,
    verdict,
)
from hjgc.tools.prediction import Prediction, prediction

OPS, SEGMENTS = "hjgc", "hjgc.segments"
IR_VERSION = 10
"""The first whose nodes and functions carry metadata."""
TYPES = {"float32": "FLOAT", "float64": "DOUBLE"}
"""Element types that ONNX calls otherwise."""
SHOWN_STATES = ("token_history", "logits", "sampled")
"""States that are values of the graph."""

Key = tuple[str, int]


def onnx_view(file: PlanFile) -> onnx.ModelProto:
    """The model, which passes `onnx.checker`."""
    plan, debug, predicted = file.plan, file.debug(), prediction(file.plan)
    drawn = [_Phase(view(plan, phase, debug), predicted).draw() for phase in plan.phases]
    nodes = [node for phase in drawn for node in phase.nodes]
    inputs = [value for phase in drawn for value in phase.inputs]
    outputs = [value for phase in drawn for value in phase.outputs]
    values = [value for phase in drawn for value in phase.values]
    graph = helper.make_graph(nodes, plan.model.name, inputs, outputs, value_info=values)
    model = helper.make_model(
        graph,
        functions=[function for phase in drawn for function in phase.functions],
        producer_name="hjgc",
        producer_version=plan.producer.hjgc,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(OPS, 1), helper.make_opsetid(SEGMENTS, 1)],
    )
    model.doc_string = "A plan of hjgc, to look at: segments are functions, launches are their nodes."
    _say(model.metadata_props, _about(plan, debug, predicted))
    return model


def _about(plan: Plan, debug: DebugMap | None, predicted: Prediction) -> dict[str, str]:
    chip = predicted.chip
    return {
        "targets": ", ".join(plan.targets),
        "bytes on the device": f"{plan.ledger.total}",
        "times are predicted for": predicted.why_not if chip is None else chip.name,
        "ONNX nodes": "named" if debug is not None else "not known: the plan has no debug section",
    }


@dataclass
class _Drawn:
    """What one phase adds to the model."""

    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    functions: list[onnx.FunctionProto] = field(default_factory=list[onnx.FunctionProto])
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])
    values: list[onnx.ValueInfoProto] = field(default_factory=list[onnx.ValueInfoProto])


@dataclass(frozen=True)
class _Step:
    """A launch with the versions of the values that it reads and writes."""

    number: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class _Phase:
    """Draws one phase. Names of values begin with the phase's, since two phases share states."""

    def __init__(self, seen: View, predicted: Prediction) -> None:
        self._seen, self._plan, self._phase = seen, seen.plan, seen.phase
        self._predicted = predicted
        self._versions: dict[Key, int] = {}
        self._names: dict[tuple[Key, int], str] = {}
        self._types: dict[str, onnx.ValueInfoProto] = {}
        self._given: dict[str, None] = {}

    def draw(self) -> _Drawn:
        schedule = self._phase.schedule()
        steps = [[self._step(number) for number in segment.launches] for segment in schedule.segments]
        last = {self._name(key, version) for key, version in self._versions.items() if key[0] == "state" and version}
        drawn = _Drawn()
        for place, segment in enumerate(schedule.segments):
            later = {name for others in steps[place + 1 :] for step in others for name in step.reads} | last
            node, function = self._segment(place, segment, steps[place], later)
            drawn.nodes.append(node)
            drawn.functions.append(function)
        drawn.inputs += [self._types[name] for name in self._given]
        drawn.outputs += [self._types[name] for name in sorted(last)]
        between = dict.fromkeys(name for node in drawn.nodes for name in node.output if name not in last)
        drawn.values += [self._types[name] for name in between]
        return drawn

    def _step(self, number: int) -> _Step:
        operands = [operand for operand in self._phase.launches[number].operands if self._is_value(operand)]
        reads = [self._read(operand) for operand in operands if operand.access != "write"]
        writes = [self._write(operand) for operand in operands if operand.access != "read"]
        return _Step(number, tuple(reads), tuple(writes))

    def _is_value(self, operand: Operand) -> bool:
        if operand.space == "state":
            return self._plan.states[operand.index].kind in SHOWN_STATES
        return operand.space == "buffer"

    def _read(self, operand: Operand) -> str:
        key = operand.space, operand.index
        if key not in self._versions:
            self._versions[key] = 0
            self._given[self._typed(key, 0)] = None
        return self._name(key, self._versions[key])

    def _write(self, operand: Operand) -> str:
        key = operand.space, operand.index
        self._versions[key] = self._versions.get(key, 0) + 1
        return self._typed(key, self._versions[key])

    def _name(self, key: Key, version: int) -> str:
        """Version 0 is what was there before. Nothing keeps a plan from calling two buffers alike."""
        if (key, version) not in self._names:
            name = f"{self._phase.name}/{operand_name(self._plan, self._phase, *key)}"
            name += f"#{version}" if version > 1 else ", given" if version == 0 else ""
            taken = name in self._types
            self._names[key, version] = f"{name} ({key[0]} {key[1]})" if taken else name
        return self._names[key, version]

    def _typed(self, key: Key, version: int) -> str:
        name = self._name(key, version)
        entry = (self._phase.buffers if key[0] == "buffer" else self._plan.states)[key[1]]
        kind = getattr(onnx.TensorProto, TYPES.get(entry.dtype, entry.dtype.upper()))
        self._types[name] = helper.make_tensor_value_info(name, kind, [_axis(axis) for axis in entry.shape])
        return name

    def _segment(
        self, place: int, segment: Segment, steps: Sequence[_Step], later: set[str]
    ) -> tuple[onnx.NodeProto, onnx.FunctionProto]:
        made = dict.fromkeys(name for step in steps for name in step.writes)
        inputs = [name for name in dict.fromkeys(n for step in steps for n in step.reads) if name not in made]
        outputs = [name for name in made if name in later] or list(made)[-1:]
        why = reasons(self._seen, segment)
        name = f"{self._phase.name}_{place}_{verdict(segment)}"
        nodes = [self._launch(step, segment, why.get(step.number, ())) for step in steps]
        function = helper.make_function(
            SEGMENTS, name, inputs, outputs, nodes, [helper.make_opsetid(OPS, 1)],
            value_info=[self._types[value] for value in [*inputs, *made]],
        )  # fmt: skip
        about = about_segment(self._seen, segment, why, self._predicted.chip)
        _say(function.metadata_props, about)
        node = helper.make_node(name, inputs, outputs, name=f"{self._phase.name}/segment {place}", domain=SEGMENTS)
        _say(node.metadata_props, about)
        return node, function

    def _launch(self, step: _Step, segment: Segment, why: Sequence[str]) -> onnx.NodeProto:
        launch = self._phase.launches[step.number]
        node = helper.make_node(launch.op, step.reads, step.writes, name=launch.name, domain=OPS)
        shown = {**self._attributes(launch, step.number), "why": list(why)}
        # ONNX knows no type of an empty list.
        node.attribute.extend(helper.make_attribute(name, value) for name, value in shown.items() if value != [])
        about = {"verdict": verdict(segment), "launch": f"{step.number}"}
        _say(node.metadata_props, about | costs(self._plan, self._phase, [step.number], self._predicted.chip))
        return node

    def _attributes(self, launch: Launch, number: int) -> dict[str, Any]:
        held = [operand for operand in launch.operands if not self._is_value(operand)]
        return {
            **{
                name: int(value) if isinstance(value, bool) else value
                for name, value in sorted(launch.attributes.items())
            },
            "onnx_nodes": list(self._seen.nodes(number)),
            "weights": [described(self._plan, self._phase, o) for o in held if o.space in ("weight", "constant")],
            "states": [described(self._plan, self._phase, o) for o in held if o.space in ("state", "parameters")],
            "kernels": kernel_texts(self._plan, self._phase, number),
        }


def _axis(axis: Expression) -> int | str:
    return axis if isinstance(axis, int) else spell(axis)


def _say(properties: Any, entries: Mapping[str, str]) -> None:
    for key, value in entries.items():
        properties.add(key=key, value=value)
