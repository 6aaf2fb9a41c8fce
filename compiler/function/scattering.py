"""Which ONNX nodes pick elements by their places, or put them there?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers


@lowers("GatherElements")
def _gather_elements(node: Lowering) -> None:
    node.give(node.emit("gather_elements", [node.x(0), node.x(1)], {"axis": node.integer("axis", 0)}))


@lowers("GatherND")
def _gather_nd(node: Lowering) -> None:
    node.give(node.emit("gather_nd", [node.x(0), node.x(1)], {"batch": node.integer("batch_dims", 0)}))


@lowers("ScatterElements", "Scatter")
def _scatter_elements(node: Lowering) -> None:
    attributes = {"axis": node.integer("axis", 0), "reduction": node.text("reduction", "none")}
    node.give(node.emit("scatter_elements", [node.x(0), node.x(1), node.x(2)], attributes))


@lowers("ScatterND")
def _scatter_nd(node: Lowering) -> None:
    attributes = {"reduction": node.text("reduction", "none")}
    node.give(node.emit("scatter_nd", [node.x(0), node.x(1), node.x(2)], attributes))


@lowers("ReverseSequence")
def _reverse_sequence(node: Lowering) -> None:
    attributes = {"time": node.integer("time_axis", 0), "batch": node.integer("batch_axis", 1)}
    node.give(node.emit("reverse_sequence", [node.x(0), node.x(1)], attributes))
