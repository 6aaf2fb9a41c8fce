"""Which ONNX operators, alone or in small groups, are words of our vocabulary?"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hjgc.compiler.rules.rule import DOMAIN, Rule, constant_ints, is_weight, scalar_float, static_shape


class LiftEmbedding(Rule):
    """Gather of rows of a weight by the token ids."""

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Gather(table, ids, _outputs=["rows"])

    def obstacle(self, table: ir.Value, ids: ir.Value, rows: ir.Value, **_: Any) -> str | None:
        if not is_weight(table) or len(static_shape(table) or ()) != 2:
            return "the table is not a weight [V, H]"
        node = rows.producer()
        assert node is not None
        if node.attributes.get_int("axis", 0) != 0:
            return "it gathers along another axis than 0"
        return None if ids.is_graph_input() else "its ids are computed, not the input"

    def replace(self, op: Any, table: ir.Value, ids: ir.Value, **_: Any) -> Any:
        return op.Embedding(ids, table, _domain=DOMAIN)


class DropCastAfterEmbedding(Rule):
    """The arithmetic type is the plan's choice, so the cast after the table says nothing."""

    def pattern(self, op: Any, table: Any, ids: Any) -> Any:
        return op.Cast(op.Embedding(ids, table, _domain=DOMAIN))

    def replace(self, op: Any, table: ir.Value, ids: ir.Value, **_: Any) -> Any:
        return op.Embedding(ids, table, _domain=DOMAIN)


class LiftRmsNorm(Rule):
    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.RMSNormalization(x, weight, _outputs=["y"])

    def obstacle(self, weight: ir.Value, y: ir.Value, **_: Any) -> str | None:
        node = y.producer()
        assert node is not None
        rank = len(static_shape(y) or ())
        if node.attributes.get_int("axis", -1) not in (-1, rank - 1):
            return "it normalises over more than the last axis"
        return None if is_weight(weight) else "its scale is computed, not a weight"

    def replace(self, op: Any, x: ir.Value, weight: ir.Value, y: ir.Value, **_: Any) -> Any:
        node = y.producer()
        assert node is not None
        epsilon = scalar_float(node.attributes.get("epsilon"), 1e-5)
        return op.RmsNorm(x, weight, epsilon=epsilon, _domain=DOMAIN)


class LiftLinear(Rule):
    """A product with a transposed weight: the weight lies as [N, K]."""

    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.MatMul(x, op.Transpose(weight, perm=[1, 0]))

    def obstacle(self, weight: ir.Value, **_: Any) -> str | None:
        return None if is_weight(weight) else "its second operand is not a weight"

    def replace(self, op: Any, x: ir.Value, weight: ir.Value, **_: Any) -> Any:
        return op.Linear(x, weight, transposed=0, _domain=DOMAIN)


class LiftLinearColumns(Rule):
    """A product with a weight that lies as [K, N]."""

    def pattern(self, op: Any, x: Any, weight: Any) -> Any:
        return op.MatMul(x, weight)

    def obstacle(self, weight: ir.Value, **_: Any) -> str | None:
        if weight.producer() is not None and weight.producer().op_type == "Transpose":  # type: ignore[union-attr]
            return None if is_weight(weight) else "its second operand is not a weight"
        fits = is_weight(weight) and len(static_shape(weight) or ()) == 2
        return None if fits else "its second operand is not a weight [K, N]"

    def replace(self, op: Any, x: ir.Value, weight: ir.Value, **_: Any) -> Any:
        return op.Linear(x, weight, transposed=1, _domain=DOMAIN)


class LiftBias(Rule):
    """A vector added to a product."""

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(op.Linear(x, weight, _domain=DOMAIN, _outputs=["product"]), bias)

    def obstacle(self, bias: ir.Value, product: ir.Value, **_: Any) -> str | None:
        if not is_weight(bias):
            return "what is added is not a weight"
        shape, columns = static_shape(bias), (static_shape(product) or (None,))[-1]
        return None if shape == (columns,) else f"the bias has shape {shape} for {columns} columns"

    def replace(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value, **_: Any) -> Any:
        node = product.producer()
        assert node is not None
        return op.Linear(x, weight, bias, transposed=node.attributes.get_int("transposed", 0), _domain=DOMAIN)


class LiftBiasFirst(LiftBias):
    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        return op.Add(bias, op.Linear(x, weight, _domain=DOMAIN, _outputs=["product"]))


class LiftSilu(Rule):
    """x * sigmoid(x)."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def replace(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Silu(x, _domain=DOMAIN)


class LiftRotaryAngles(Rule):
    """Positions times frequencies."""

    def pattern(self, op: Any, positions: Any, axes: Any, frequencies: Any) -> Any:
        return op.Mul(op.Cast(op.Unsqueeze(positions, axes)), frequencies)

    def obstacle(self, positions: ir.Value, axes: ir.Value, frequencies: ir.Value, **_: Any) -> str | None:
        if positions.name != "position_ids" or not positions.is_graph_input():
            return "its positions are not the input position_ids"
        if constant_ints(axes) not in ((2,), (-1,)):
            return "the positions are not given a last axis"
        return None if is_weight(frequencies) else "its frequencies are computed"

    def replace(self, op: Any, positions: ir.Value, frequencies: ir.Value, **_: Any) -> Any:
        return op.RotaryAngles(positions, frequencies, _domain=DOMAIN)


class LiftCausalMask(Rule):
    """key position <= query position, both counted from the start of the cache."""

    def pattern(self, op: Any, zero: Any, total: Any, one: Any, past: Any, key_axis: Any, query_axis: Any) -> Any:
        keys = op.Unsqueeze(op.Range(zero, total, one), key_axis)
        queries = op.Unsqueeze(op.Range(past, total, one), query_axis)
        return op.LessOrEqual(keys, queries)

    def obstacle(
        self, zero: ir.Value, total: ir.Value, one: ir.Value, past: ir.Value, key_axis: ir.Value, query_axis: ir.Value,
        **_: Any,
    ) -> str | None:  # fmt: skip
        if (constant_ints(zero), constant_ints(one)) != ((0,), (1,)):
            return "the positions do not count 0, 1, 2, ..."
        if (constant_ints(key_axis), constant_ints(query_axis)) != ((0,), (1,)):
            return "keys are not the columns, queries not the rows"
        if not is_past_length(past):
            return "the first query position is not the length of the cache"
        return None if is_total_length(total, past) else "the last key position is not cache length + new tokens"

    def replace(self, op: Any, past: ir.Value, **_: Any) -> Any:
        return op.CausalMask(past, _domain=DOMAIN)


class LiftCausalMaskTwoOnes(LiftCausalMask):
    """The same with two constants for the two steps of one."""

    def pattern(self, op: Any, zero: Any, total: Any, one: Any, step: Any, past: Any, key_axis: Any, query_axis: Any) -> Any:
        keys = op.Unsqueeze(op.Range(zero, total, one), key_axis)
        queries = op.Unsqueeze(op.Range(past, total, step), query_axis)
        return op.LessOrEqual(keys, queries)

    def obstacle(self, step: ir.Value, **values: Any) -> str | None:
        return super().obstacle(**values) if constant_ints(step) == (1,) else "the queries do not count by one"


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
    DropCastAfterEmbedding,
    LiftRmsNorm,
    LiftLinear,
    LiftLinearColumns,
    LiftBias,
    LiftBiasFirst,
    LiftSilu,
    LiftRotaryAngles,
    LiftCausalMask,
    LiftCausalMaskTwoOnes,
]
