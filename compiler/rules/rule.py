"""What do all rewrite rules share: they say why they do not fire, and new nodes remember what they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet

from hjgc.plan_format.structs import Note

DOMAIN = "hjgc"
NODES_KEY, VALUE_KEY = "hjgc.nodes", "hjgc.value"
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Match = Mapping[str, ir.Value]
"""What the names in a pattern stand for: its inputs, and the values named by `_outputs`."""


@dataclass
class Journal:
    """The rules that matched a pattern and then did not fire."""

    notes: dict[tuple[str, str], Note] = field(default_factory=dict[tuple[str, str], Note])

    def add(self, rule: str, node: str, why: str) -> None:
        self.notes[rule, node] = Note(rule, node, why)


class Rule(RewriteRuleClassBase):
    """A pattern, what may stand in its way (`obstacle`), and what replaces it (`replace`)."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name=type(self).__name__)
        self.journal = journal
        self._sources: tuple[str, ...] = ()

    def obstacle(self, m: Match) -> str | None:
        """Why the rule must not fire here, or None; "" where nobody would expect it to."""
        del m
        return None

    def replace(self, op: Any, m: Match) -> Any:
        """The replacement."""
        raise NotImplementedError

    def check(self, context: Any, **values: Any) -> MatchResult:
        result = MatchResult()
        self._sources = tuple(dict.fromkeys(name for node in context.nodes for name in source_nodes(node)))
        why = self.obstacle(values)
        if why:
            self.journal.add(type(self).__name__, node_name(context.root), why)
        if why is not None:
            result.fail(why)
        return result

    def rewrite(self, op: Any, **values: Any) -> Any:
        outputs = self.replace(op, values)
        for node in op.nodes:
            node.metadata_props[NODES_KEY] = "\n".join(self._sources)
        return outputs


def apply_rules(model: ir.Model, rules: list[type[Rule]], journal: Journal) -> None:
    """Sweep over the graph with all rules until none fires. Sums and products match in either order."""
    rule_set = RewriteRuleSet([kind.rule(journal) for kind in rules], commute=True)
    while rule_set.apply_to_model(model):
        pass


def node_name(node: ir.Node) -> str:
    """The node's name, or the name of its first output, on one line."""
    return " ".join((node.name or next((value.name or "" for value in node.outputs), "")).split())


def producer(value: ir.Value) -> ir.Node:
    """The node that makes a value which a pattern says is made by one."""
    node = value.producer()
    assert node is not None
    return node


def transposed(made: ir.Value) -> int:
    """1 where the weight of one of our words lies as [K, N], or [H, V]."""
    return producer(made).attributes.get_int("transposed", 0)


def source_nodes(node: ir.Node) -> tuple[str, ...]:
    """The ONNX nodes of the input file that this node stands for."""
    recorded = node.metadata_props.get(NODES_KEY)
    return tuple(recorded.split("\n")) if recorded else (node_name(node),)


def is_op(node: ir.Node | None, name: str) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type == name


def scalar_float(value: ir.Attr | None, default: float) -> float:
    return default if value is None else float(value.as_float())


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a small constant, or None."""
    tensor = None if value is None else value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.size > 64:
        return None
    return tuple(int(x) for x in tensor.numpy().reshape(-1))


def static_shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Each axis, None where it is symbolic; None if the rank is unknown. Of a weight what it is, not what is noted."""
    if value is None:
        return None
    shape = value.shape if value.const_value is None else value.const_value.shape
    return None if shape is None else tuple(axis if isinstance(axis, int) else None for axis in shape)


def is_weight(value: ir.Value | None) -> bool:
    """An initializer, or what one is dequantised to when it is loaded."""
    return value is not None and (value.is_initializer() or is_op(value.producer(), "Dequantise"))
