"""Which numbers does a model compute from sizes alone: shapes, axes, counts?

The contents of a small tensor of whole numbers are held as an array of sizes: numbers, or expressions over the declared
sizes. A node all of whose operands are known so needs no launch, unless somebody computes with its result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Expression

Contents = NDArray[Any]
"""Of dtype object: integers and expressions."""

MOST = 1024
"""Elements that are kept track of."""
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


def of_tensor(tensor: ir.TensorProtocol) -> Contents | None:
    """Those of an initializer; None if it is large, or of another type."""
    if tensor.dtype not in INTEGERS or tensor.size > MOST:
        return None
    array = tensor.numpy()
    found = np.empty(array.shape, object)
    for place in np.ndindex(array.shape):
        found[place] = int(array[place])
    return found


def numbers(contents: Contents) -> tuple[int, ...] | None:
    """All of them, flat, if they are numbers."""
    flat = tuple(contents.reshape(-1))
    return flat if all(isinstance(item, int) for item in flat) else None


def sizes(contents: Contents) -> tuple[Expression, ...]:
    return tuple(contents.reshape(-1))


Shape = tuple[Expression, ...]
Known = Callable[[ir.Value], Contents | None]
ShapeOf = Callable[[ir.Value], Shape | None]
Limits = Callable[[Expression], tuple[int, int]]


def of_node(node: ir.Node, version: int, known: Known, shape_of: ShapeOf, limits: Limits) -> Contents | None:
    """The contents of the node's only result; None if they are not sizes alone."""
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None or len(node.outputs) != 1 or _chooses(node):
        return None
    try:
        found = rule(_Node(node, version, known, shape_of, limits))
    except (_Unknown, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None
    return found if found.size <= MOST else None


def _chooses(node: ir.Node) -> bool:
    """Does an If choose by its result? ONNX Runtime puts the branch of a constant in the If's place, and then refuses
    models that it runs otherwise."""
    return any(user.op_type == "If" for user, _ in node.outputs[0].uses())


class _Unknown(Exception):
    """Not known from sizes alone."""


class _Node:
    """A node with its operands' contents."""

    def __init__(self, node: ir.Node, version: int, known: Known, shape_of: ShapeOf, limits: Limits) -> None:
        self.node, self.version, self._known, self._shape_of = node, version, known, shape_of
        self.limits = limits

    def least(self, size: Expression) -> int:
        return self.limits(size)[0]

    def value(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def contents(self, index: int) -> Contents:
        value = self.value(index)
        found = None if value is None else self._known(value)
        if found is None:
            raise _Unknown
        return found

    def numbers(self, index: int, attribute: str) -> tuple[int, ...] | None:
        """An operand of numbers, in older models an attribute; None if it is left out."""
        if self.value(index) is not None:
            found = numbers(self.contents(index))
            if found is None:
                raise _Unknown
            return found
        return tuple(self.node.attributes[attribute].as_ints()) if attribute in self.node.attributes else None

    def shape(self, index: int) -> Shape:
        value = self.value(index)
        found = None if value is None else self._shape_of(value)
        if found is None:
            raise _Unknown
        return found

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)


def _array(items: Any) -> Contents:
    found = np.empty(len(items), object)
    for i, item in enumerate(items):
        found[i] = item
    return found


def _scalar(item: Expression) -> Contents:
    found = np.empty((), object)
    found[()] = item
    return found


def _shape(node: _Node) -> Contents:
    axes = node.shape(0)
    return _array(axes[slice(node.integer("start", 0), node.node.attributes.get_int("end", len(axes)))])


def _size(node: _Node) -> Contents:
    return _scalar(dims.product(node.shape(0)))


def _gather(node: _Node) -> Contents:
    indices = node.contents(1)
    whole = numbers(indices)
    if whole is None:
        raise _Unknown
    places = np.array(whole, np.int64).reshape(indices.shape)
    return np.asarray(np.take(node.contents(0), places, axis=node.integer("axis", 0)), object)


def _concat(node: _Node) -> Contents:
    parts = [node.contents(i) for i in range(len(node.node.inputs))]
    return np.concatenate(parts, axis=node.integer("axis", 0))


def _unsqueeze(node: _Node) -> Contents:
    axes = node.numbers(1, "axes") or ()
    x = node.contents(0)
    rank = x.ndim + len(axes)
    return np.expand_dims(x, tuple(axis % rank for axis in axes))


def _squeeze(node: _Node) -> Contents:
    axes = node.numbers(1, "axes")
    return np.squeeze(node.contents(0), None if axes is None else axes)


def _reshape(node: _Node) -> Contents:
    wanted = node.numbers(1, "shape")
    if wanted is None:
        raise _Unknown
    return node.contents(0).reshape(wanted)


def _slice(node: _Node) -> Contents:
    x = node.contents(0)
    starts, ends = node.numbers(1, "starts") or (), node.numbers(2, "ends") or ()
    axes = node.numbers(3, "axes") or tuple(range(len(starts)))
    steps = node.numbers(4, "steps") or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = np.take(x, list(elements(x.shape[axis], start, end, step)), axis=axis)
    return np.asarray(x, object)


def elements(axis: int, start: int, end: int, step: int) -> range:
    """The places that ONNX's Slice takes of an axis: ends from behind count from its size, and stop at it."""
    start, end = (place + axis if place < 0 else place for place in (start, end))
    if step > 0:
        return range(min(max(start, 0), axis), min(max(end, 0), axis), step)
    return range(min(max(start, 0), axis - 1), min(max(end, -1), axis - 1), step)


def _same(node: _Node) -> Contents:
    return node.contents(0)


def _cast(node: _Node) -> Contents:
    kind, found = ir.DataType(node.integer("to", 0)), node.contents(0)
    narrow = kind == ir.DataType.INT32 and any(isinstance(item, int) and abs(item) >= 1 << 31 for item in found.flat)
    if kind not in INTEGERS or narrow:
        raise _Unknown
    return found


def _binary(operation: Callable[[Expression, Expression], Expression]) -> Callable[[_Node], Contents]:
    def rule(node: _Node) -> Contents:
        left, right = np.broadcast_arrays(node.contents(0), node.contents(1))
        found = np.empty(left.shape, object)
        for place, one, other in zip(np.ndindex(left.shape), left.flat, right.flat, strict=True):
            found[place] = operation(one, other)
        return found

    return rule


def _div(node: _Node) -> Contents:
    return _binary(lambda left, right: _quotient(left, right, node.least))(node)


def _quotient(left: Expression, right: Expression, least: Callable[[Expression], int]) -> Expression:
    """As ONNX divides whole numbers, towards 0: that is down for what is not under 0, and not known for what may be."""
    if isinstance(left, int) and isinstance(right, int):
        return int(abs(left) // abs(right)) * (1 if (left < 0) == (right < 0) else -1)
    if not isinstance(right, int) or right < 1 or least(left) < 0:
        found = dims.divide(left, right)
        if found is None:
            raise _Unknown
        return found
    return dims.floor_div(left, right)


def _compared(holds: Callable[[int], bool]) -> Callable[[_Node], Contents]:
    """1 or 0, where the bounds of the difference of two sizes decide."""

    def rule(node: _Node) -> Contents:
        return _binary(lambda left, right: _decided(node.limits(dims.sub(left, right)), holds))(node)

    return rule


def _decided(bounds: tuple[int, int], holds: Callable[[int], bool]) -> int:
    """What is so of every difference within the bounds: for a comparison with 0, at the ends and nearest to it."""
    low, high = bounds
    found = {holds(place) for place in {low, high, max(low, min(high, 0))}}
    if len(found) != 1:
        raise _Unknown
    return int(found.pop())


def _of_numbers(operation: Callable[[int, int], int]) -> Callable[[_Node], Contents]:
    """Of two numbers what numbers alone decide."""

    def checked(left: Expression, right: Expression) -> Expression:
        if not isinstance(left, int) or not isinstance(right, int):
            raise _Unknown
        return int(operation(left, right))

    return _binary(checked)


def _mod(node: _Node) -> Contents:
    if node.integer("fmod", 0):
        raise _Unknown
    return _of_numbers(operator.mod)(node)


def _negative(node: _Node) -> Contents:
    x = node.contents(0)
    return _array([dims.sub(0, item) for item in x.reshape(-1)]).reshape(x.shape)


def _extreme(choose: Callable[[int, int], int]) -> Callable[[_Node], Contents]:
    """The least or greatest of any number of operands."""

    def rule(node: _Node) -> Contents:
        found = np.broadcast_arrays(*(node.contents(i) for i in range(len(node.node.inputs))))
        whole = [numbers(part) for part in found]
        if None in whole:
            raise _Unknown
        columns = zip(*(part for part in whole if part is not None), strict=True)
        return _array([reduce(choose, column) for column in columns]).reshape(found[0].shape)

    return rule


def _not(node: _Node) -> Contents:
    found = numbers(node.contents(0))
    if found is None:
        raise _Unknown
    return _array([int(not item) for item in found]).reshape(node.contents(0).shape)


def _where(node: _Node) -> Contents:
    chosen, left, right = np.broadcast_arrays(*(node.contents(i) for i in range(3)))
    found = np.empty(chosen.shape, object)
    for place in np.ndindex(chosen.shape):
        if not isinstance(chosen[place], int):
            raise _Unknown
        found[place] = left[place] if chosen[place] else right[place]
    return found


def _constant_of_shape(node: _Node) -> Contents:
    shape, value = numbers(node.contents(0)), node.node.attributes.get("value")
    tensor = None if value is None else value.as_tensor()
    if shape is None or tensor is None or tensor.dtype not in INTEGERS or int(np.prod(shape)) > MOST:
        raise _Unknown
    found = np.empty(shape, object)
    found.fill(int(tensor.numpy().reshape(-1)[0]))
    return found


def _range(node: _Node) -> Contents:
    ends = [numbers(node.contents(i)) for i in range(3)]
    if any(end is None for end in ends):
        raise _Unknown
    return _array(range(*(end[0] for end in ends if end is not None))[: MOST + 1])


_RULES: Mapping[str, Callable[[_Node], Contents]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Identity": _same,
    "Cast": _cast,
    "Add": _binary(dims.add),
    "Sub": _binary(dims.sub),
    "Mul": _binary(dims.mul),
    "Div": _div,
    "Mod": _mod,
    "Neg": _negative,
    "Min": _extreme(min),
    "Max": _extreme(max),
    "Equal": _compared(lambda difference: difference == 0),
    "Greater": _compared(lambda difference: difference > 0),
    "GreaterOrEqual": _compared(lambda difference: difference >= 0),
    "Less": _compared(lambda difference: difference < 0),
    "LessOrEqual": _compared(lambda difference: difference <= 0),
    "And": _of_numbers(operator.and_),
    "Or": _of_numbers(operator.or_),
    "Not": _not,
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}
