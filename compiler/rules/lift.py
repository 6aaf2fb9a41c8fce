"""Which ONNX operators, alone or in small groups, are words of our vocabulary?"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hjgc.compiler.rules.rule import (
    DOMAIN,
    FLOATS,
    Match,
    Rule,
    constant_ints,
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
            return "the table is not a weight [V, H]"
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


class DropCastAfterEmbedding(Rule):
    """The arithmetic type is the plan's choice, so the cast after the table says nothing."""

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Cast(op.Embedding(ids, table, _domain=DOMAIN, _outputs=["rows"]), _outputs=["y"])

    def obstacle(self, m: Match) -> str | None:
        to = producer(m["y"]).attributes.get_int("to", 0)
        return None if to in FLOATS else "it casts the rows to what is no float"

    def replace(self, op: Any, m: Match) -> Any:
        return op.Embedding(m["ids"], m["table"], transposed=transposed(m["rows"]), _domain=DOMAIN)


class LiftRmsNorm(Rule):
    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.RMSNormalization(x, weight, _outputs=["y"])

    def obstacle(self, m: Match) -> str | None:
        rank = len(static_shape(m["y"]) or ())
        if producer(m["y"]).attributes.get_int("axis", -1) not in (-1, rank - 1):
            return "it normalises over more than the last axis"
        return None if is_weight(m["weight"]) else "its scale is computed, not a weight"

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
            return "its second operand is not a weight"
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


class LiftRotaryAngles(Rule):
    """Positions times frequencies."""

    def pattern(self, op: Any, positions: Any, axes: Any, frequencies: Any) -> Any:
        return op.Mul(op.Cast(op.Unsqueeze(positions, axes)), frequencies)

    def obstacle(self, m: Match) -> str | None:
        if m["positions"].name != "position_ids" or not m["positions"].is_graph_input():
            return "its positions are not the input position_ids"
        if constant_ints(m["axes"]) not in ((2,), (-1,)):
            return "the positions are not given a last axis"
        is_vector = is_weight(m["frequencies"]) and len(static_shape(m["frequencies"]) or ()) == 1
        return None if is_vector else "its frequencies are not a constant vector"

    def replace(self, op: Any, m: Match) -> Any:
        return op.RotaryAngles(m["positions"], m["frequencies"], _domain=DOMAIN)


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


class CausalMaskRule(Rule):
    """key position <= query position, both counted from the start of the cache."""

    def obstacle(self, m: Match) -> str | None:
        if (constant_ints(m["zero"]), constant_ints(m["one"])) != ((0,), (1,)):
            return "the positions do not count 0, 1, 2, ..."
        if (constant_ints(m["key_axis"]), constant_ints(m["query_axis"])) != ((0,), (1,)):
            return "keys are not the columns, queries not the rows"
        if not is_past_length(m["past"]):
            return "the first query position is not the length of the cache"
        is_total = is_total_length(m["total"], m["past"])
        return None if is_total else "the last key position is not cache length + new tokens"

    def replace(self, op: Any, m: Match) -> Any:
        return op.CausalMask(m["past"], _domain=DOMAIN)


class LiftCausalMask(CausalMaskRule):
    """Both ranges step by the same constant."""

    def pattern(self, op: Any, zero: Any, total: Any, one: Any, past: Any, key_axis: Any, query_axis: Any) -> Any:
        keys = op.Unsqueeze(op.Range(zero, total, one), key_axis)
        queries = op.Unsqueeze(op.Range(past, total, one), query_axis)
        return op.LessOrEqual(keys, queries)


class LiftCausalMaskTwoOnes(CausalMaskRule):
    """The same with two constants for the two steps of one."""

    def pattern(
        self, op: Any, zero: Any, total: Any, one: Any, step: Any, past: Any, key_axis: Any, query_axis: Any
    ) -> Any:
        keys = op.Unsqueeze(op.Range(zero, total, one), key_axis)
        queries = op.Unsqueeze(op.Range(past, total, step), query_axis)
        return op.LessOrEqual(keys, queries)

    def obstacle(self, m: Match) -> str | None:
        return super().obstacle(m) if constant_ints(m["step"]) == (1,) else "the queries do not count by one"


def may_be_equal(one: tuple[int | None, ...] | None, other: tuple[int | None, ...] | None) -> bool:
    """Do two shapes agree as far as they are known?"""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(None in (a, b) or a == b for a, b in zip(one, other, strict=True))


def dimension_of(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, axis) if the value is the scalar length of that axis of x."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Squeeze":
        return None
    shape = None if node.inputs[0] is None else node.inputs[0].producer()
    if shape is None or shape.op_type != "Shape" or shape.inputs[0] is None:
        return None
    start = shape.attributes.get_int("start", 0)
    end = shape.attributes.get_int("end", start + 1)
    return (shape.inputs[0], start) if end == start + 1 else None


def is_past_length(value: ir.Value | None) -> bool:
    found = dimension_of(value)
    return found is not None and found[1] == 2 and (found[0].name or "").startswith("past_key_values.")


def is_total_length(value: ir.Value | None, past: ir.Value) -> bool:
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Add" or past not in node.inputs:
        return False
    other = next((item for item in node.inputs if item is not past), None)
    found = dimension_of(other)
    return found is not None and found[1] == 1 and found[0].name == "input_ids"


RULES: list[type[Rule]] = [
    LiftEmbedding,
    LiftEmbeddingColumns,
    DropCastAfterEmbedding,
    LiftRmsNorm,
    LiftLinear,
    LiftLinearColumns,
    LiftBias,
    LiftSilu,
    LiftRotaryAngles,
    LiftHostFunction,
    LiftCausalMask,
    LiftCausalMaskTwoOnes,
]
