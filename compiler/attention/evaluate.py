"""What numbers does a part of the graph give? It is run on small numbers, in float32, by the reference of each
operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from hjgc.compiler.attention.meanings import MEANINGS
from hjgc.compiler.interface import Array, Interface, Sizes, dimension
from hjgc.compiler.rules.rule import DOMAIN, FLOATS, is_op, static_shape
from hjgc.compiler.tables import read_tensor

MOST_BYTES = 256 << 20
"""Of an initializer that may be read for it: a table of cosines for 2^17 positions has 32 MiB."""
SHAPES = ("Shape", "Size")
SAME_SHAPE = ("RmsNorm", "HostCall", "HostFunction", "Silu")


class Unknown(Exception):
    """The numbers depend on what is not given; the text says on what."""


class Uncomputable(Unknown):
    """An operator refuses these sizes."""


@dataclass
class Evaluator:
    """Runs cones of one graph. Operators are made once and run at any sizes."""

    model: ir.Model
    interface: Interface
    cache: tuple[int, int] | None = None
    """Heads and head size of caches whose inputs leave them open."""
    _ops: dict[ir.Node, ReferenceEvaluator] = field(default_factory=dict[ir.Node, ReferenceEvaluator])
    _initializers: dict[ir.Value, Array] = field(default_factory=dict[ir.Value, Array])

    def run(self, targets: Iterable[ir.Value], given: Mapping[ir.Value, Array], sizes: Sizes) -> list[Array]:
        """The numbers of the targets, where these values have these numbers. Raises Unknown."""
        targets = list(targets)
        values = self.interface.known(sizes) | dict(given)
        for node in cone(targets, set(values)):
            self._step(node, values, sizes)
        return [self._value(target, values) for target in targets]

    def _step(self, node: ir.Node, values: dict[ir.Value, Array], sizes: Sizes) -> None:
        if node.op_type in SHAPES and node.domain == "":
            arrays: list[Array | None] = [np.empty(self._shape(node, values, sizes), np.int8)]
        else:
            arrays = [None if value is None else self._value(value, values) for value in node.inputs]
        try:
            made = self._apply(node, arrays)
        except Unknown:
            raise
        except Exception as error:  # the references raise whatever numpy does
            words = " ".join(str(error).split())[:120]
            raise Uncomputable(f"{node.op_type} cannot be computed ({words or type(error).__name__})") from error
        for value, array in zip(node.outputs, made, strict=False):
            if array is not None:
                values[value] = widened(array)

    def _shape(self, node: ir.Node, values: dict[ir.Value, Array], sizes: Sizes) -> tuple[int, ...]:
        """Of what a Shape node looks at: of the numbers themselves where no rule gives it."""
        source = node.inputs[0]
        assert source is not None
        if source not in values:
            try:
                return self.shape(source, sizes)
            except Unknown:
                for before in cone([source], set(values)):
                    self._step(before, values, sizes)
        return self._value(source, values).shape

    def _apply(self, node: ir.Node, arrays: list[Array | None]) -> Any:
        meaning = MEANINGS.get((node.domain, node.op_type))
        if meaning is not None:
            return meaning(node, arrays)
        if node.domain == DOMAIN:
            raise Unknown(f"it depends on the result of {node.op_type}")
        if node.domain not in ("", "ai.onnx"):
            raise Unknown(f"{node.domain}.{node.op_type} has no reference")
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise Unknown(f"{node.op_type} chooses or repeats a part of the graph")
        if node not in self._ops:
            version = self.model.graph.opset_imports.get("", 20)
            self._ops[node] = ReferenceEvaluator(ir.to_proto(node), opsets={"": version})
        feeds = {str(value.name): array for value, array in zip(node.inputs, arrays, strict=True) if value is not None}
        return self._ops[node].run(None, feeds)

    def _value(self, value: ir.Value, values: Mapping[ir.Value, Array]) -> Array:
        if value in values:
            return values[value]
        if value not in self._initializers:
            tensor = value.const_value
            if tensor is None:
                raise Unknown(f"it depends on {value.name}")
            if tensor.nbytes > MOST_BYTES:
                raise Unknown(f"it depends on the numbers of {value.name}")
            self._initializers[value] = widened(read_tensor(tensor))
        return self._initializers[value]

    def shape(self, value: ir.Value, sizes: Sizes) -> tuple[int, ...]:
        """Of ids, caches, and activations that are made of rows. Raises Unknown."""
        seen: list[int] = []  # widths on the way, the last one counts
        while True:
            if value is self.interface.ids:
                return (sizes.batch, sizes.new, *seen[:1])
            if value in self.interface.caches:
                return self._cache_shape(value, sizes)
            known = self.interface.known(sizes)
            if value in known:
                return known[value].shape
            node = value.producer()
            if node is None or not node.inputs or node.inputs[0] is None:
                raise Unknown(f"the shape of {value.name} is not known")
            if is_op(node, "Embedding"):
                table = static_shape(node.inputs[1]) or (None, None)
                width = table[0 if node.attributes.get_int("transposed", 0) else 1]
                if not seen and width is None:
                    raise Unknown("how wide the embedding is is not known")
                return (sizes.batch, sizes.new, seen[0] if seen else width or 0)
            if is_op(node, "Linear"):
                seen.append(linear_columns(value))
            elif node.op_type == "Add" and node.inputs[0].is_initializer() and node.inputs[1] is not None:
                value = node.inputs[1]
                continue
            elif node.op_type not in (*SAME_SHAPE, "Add", "Mul", "Identity", "Cast"):
                raise Unknown(f"the shape of what {node.op_type} gives is not known")
            value = node.inputs[0]

    def _cache_shape(self, value: ir.Value, sizes: Sizes) -> tuple[int, ...]:
        if value.shape is None or len(value.shape) != 4:
            raise Unknown(f"{value.name} is not said to be [1, heads, past, size]")
        known = self.cache or (None, None)
        heads, size = dimension(value.shape[1]) or known[0], dimension(value.shape[3]) or known[1]
        if heads is None or size is None:
            raise Unknown(f"{value.name} does not say how many heads of which size it has")
        return (sizes.batch, heads, self.interface.rows(value, sizes), size)


def linear_columns(product: ir.Value) -> int:
    """Columns that a Linear gives."""
    node = product.producer()
    shape = None if node is None else static_shape(node.inputs[1])
    axis = None if node is None or shape is None else shape[1 if node.attributes.get_int("transposed", 0) else 0]
    if axis is None:
        raise Unknown(f"how many columns {product.name} has is not known")
    return axis


def cone(targets: Iterable[ir.Value], stops: set[ir.Value]) -> list[ir.Node]:
    """The nodes that the targets are computed with, operands first, not going past `stops`, nor past Shape."""
    found: dict[ir.Node, None] = {}
    pending = [(value, False) for value in targets]
    while pending:
        value, done = pending.pop()
        node = value.producer()
        if node is None or node in found or (value in stops and not done):
            continue
        if done:
            found[node] = None
            continue
        pending.append((value, True))
        if node.op_type not in SHAPES:
            pending += [(operand, False) for operand in node.inputs if operand is not None]
    return list(found)


def widened(array: Any) -> Array:
    """Half precision as float32: rounding is not what is looked at."""
    array = np.asarray(array)
    kind = ir.DataType.from_numpy(array.dtype) if array.dtype.kind in "fV" else None
    return array.astype(np.float32) if kind in FLOATS and array.dtype != np.float32 else array
