"""Which ONNX nodes measure how far scores are from the right classes?"""

from __future__ import annotations

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor


@lowers("NegativeLogLikelihoodLoss")
def _likelihood(node: Lowering) -> None:
    node.give(_loss(node, node.x(0)))


@lowers("SoftmaxCrossEntropyLoss")
def _cross_entropy(node: Lowering) -> None:
    logarithms = node.emit("softmax", [node.x(0)], {"axis": 1, "log": True})
    node.give(_loss(node, logarithms))
    if node.wants(1):
        node.give(logarithms, 1)


def _loss(node: Lowering, logarithms: Tensor) -> Tensor:
    ignored = "ignore_index" in node.node.attributes
    attributes = {
        "reduction": node.text("reduction", "mean"),
        "ignored": (node.integer("ignore_index", 0),) if ignored else (),
    }
    return node.emit("class_loss", [logarithms, node.x(1), node.optional(2)], attributes)
