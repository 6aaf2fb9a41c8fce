"""Which ONNX operators, alone or in small groups, are words of our vocabulary?"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hjgc.compiler.rules.rule import (
    DOMAIN,
    Match,
    Rule,
    is_weight,
    producer,
    scalar_float,
    static_shape,
    transposed,
)


class LiftEmbedding(Rule):
    """Gather of rows of a weight by the token ids."""

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Gather(table, ids, _outputs=["rows"])

    def obstacle(self, m: Match) -> str | None:
        if not is_weight(m["table"]) or len(static_shape(m["table"]) or ()) != 2:
            return "the table is not a weight [V, H]" if is_computed(m["table"]) else ""
        if producer(m["rows"]).attributes.get_int("axis", 0) != 0:
            return "it gathers along another axis than 0"
        is_input = m["ids"].is_graph_input() and m["ids"].name == "input_ids"
        return None if is_input else "its ids are not the input input_ids"

    lies_transposed = 0

    def replace(self, op: Any, m: Match) -> Any:
        return op.Embedding(m["ids"], m["table"], transposed=self.lies_transposed, _domain=DOMAIN)


class LiftEmbeddingColumns(LiftEmbedding):
    """The same where the table lies as [H, V]."""

    lies_transposed = 1

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Gather(op.Transpose(table, perm=[1, 0]), ids, _outputs=["rows"])


class LiftRmsNorm(Rule):
    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.RMSNormalization(x, weight, _outputs=["y"])

    def obstacle(self, m: Match) -> str | None:
        rank = len(static_shape(m["y"]) or ())
        if producer(m["y"]).attributes.get_int("axis", -1) not in (-1, rank - 1):
            return "it normalises over more than the last axis"
        if not is_weight(m["weight"]):
            return "its scale is computed, not a weight"
        return None if len(static_shape(m["weight"]) or ()) == 1 else "its scale has not one axis"

    def replace(self, op: Any, m: Match) -> Any:
        epsilon = scalar_float(producer(m["y"]).attributes.get("epsilon"), 1e-5)
        return op.RmsNorm(m["x"], m["weight"], epsilon=epsilon, _domain=DOMAIN)


class LiftLinear(Rule):
    """A product with a transposed weight: the weight lies as [N, K]."""

    lies_transposed = 0

    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))

    def obstacle(self, m: Match) -> str | None:
        if not is_weight(m["weight"]):
            return "its second operand is not a weight" if is_computed(m["weight"]) else ""
        rank = len(static_shape(m["weight"]) or ())
        return None if rank == 2 else f"its second operand has {rank} axes, not 2"

    def replace(self, op: Any, m: Match) -> Any:
        return op.Linear(m["x"], m["weight"], transposed=self.lies_transposed, _domain=DOMAIN)


class LiftLinearColumns(LiftLinear):
    """A product with a weight that lies as [K, N]."""

    lies_transposed = 1

    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.MatMul(x, weight)


class LiftBias(Rule):
    """A vector added to a product."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.Linear(x, weight, _domain=DOMAIN, _outputs=["product"]), bias)

    def obstacle(self, m: Match) -> str | None:
        if not is_weight(m["bias"]):
            return "what is added is not a weight"
        rows, columns = static_shape(m["weight"]) or (None, None)
        wanted, found = columns if transposed(m["product"]) else rows, static_shape(m["bias"])
        return None if found == (wanted,) else f"the bias has shape {found} for {wanted} columns"

    def replace(self, op: Any, m: Match) -> Any:
        return op.Linear(m["x"], m["weight"], m["bias"], transposed=transposed(m["product"]), _domain=DOMAIN)


class LiftSilu(Rule):
    """x * sigmoid(x)."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def replace(self, op: Any, m: Match) -> Any:
        return op.Silu(m["x"], _domain=DOMAIN)


class LiftHostFunction(Rule):
    """A function of the caller's, of the rows alone. Its result is shaped like its operand, even where the file says
    nothing."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.HostFunction(x, _domain=DOMAIN, _outputs=["y"])

    def obstacle(self, m: Match) -> str | None:
        x, y = m["x"], m["y"]
        if y.is_graph_output():
            return "its result is an output of the model, which a logits processor may change instead"
        if is_weight(x) or x.is_graph_input():
            return "its operand is a weight or an input of the model, not an activation"
        shape = static_shape(x)
        if shape is not None and (len(shape) != 3 or shape[0] not in (1, None) or shape[2] is None):
            return "its operand is not made of rows: it has not the shape [1, tokens, a number]"
        return None if may_be_equal(shape, static_shape(y)) else "its result has another shape than its operand"

    def replace(self, op: Any, m: Match) -> Any:
        x, y = m["x"], m["y"]
        y.shape, y.type = x.shape or y.shape, x.type or y.type
        return op.HostCall(x, name=producer(y).attributes["name"].as_string(), _domain=DOMAIN)


def is_computed(value: ir.Value) -> bool:
    """From constants alone: a product with it is one with a weight in disguise."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None and not value.is_initializer():
            return False
        seen.add(value)
        operands = [] if node is None else [operand for operand in node.inputs if operand is not None]
        pending += [operand for operand in operands if operand not in seen]
    return True


def may_be_equal(one: tuple[int | None, ...] | None, other: tuple[int | None, ...] | None) -> bool:
    """Do two shapes agree as far as they are known?"""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(None in (a, b) or a == b for a, b in zip(one, other, strict=True))


RULES: list[type[Rule]] = [
    LiftEmbedding,
    LiftEmbeddingColumns,
    LiftRmsNorm,
    LiftLinear,
    LiftLinearColumns,
    LiftBias,
    LiftSilu,
    LiftHostFunction,
]
