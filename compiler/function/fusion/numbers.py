"""Which operands of an expression are numbers that the compiler knows?

A constant of one element becomes a number of the expression, and so does what is computed of such alone: nothing has to
be loaded for it, and what the expression means can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import replace
from typing import Any

import numpy as np

from hjgc.compiler.function.fusion.flow import Flow, Workshop, buffer_of, expression_of
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import Call, Node, Number, Operand, spell, substituted
from hjgc.plan_format.ops.shapes import broadcast

COMPUTED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt,
    "reciprocal": np.reciprocal, "neg": np.negative,
}  # fmt: skip
"""Of floating-point numbers, each rounded as a kernel and the reference round it."""
FLOATS = ("float32", "float16", "float64")
Known = MutableMapping[str, Number]
"""By buffer."""


def inline_numbers(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    """The steps with such operands of elementwise ones gone, where the result keeps its shape."""
    known: Known = {}
    return tuple(_inlined(step, workshop, known) if step.op == "elementwise" else step for step in flow.steps)


def _inlined(step: Step, workshop: Workshop, known: Known) -> Step:
    operands, node = expression_of(step)
    numbers = [_number(tensor, workshop, known) for tensor in operands]
    left = [tensor for tensor, found in zip(operands, numbers, strict=True) if found is None]
    y = step.operands["y0"]
    if operands and not left and dims.product(y.shape) == 1:
        value = _value(node, [number for number in numbers if number is not None])
        if value is not None:
            known[y.name] = value
    if len(left) == len(operands) or not left or broadcast([tensor.shape for tensor in left]) != tuple(y.shape):
        return step
    places = iter(range(len(left)))
    nodes = [Operand(next(places)) if found is None else found for found in numbers]
    inputs = {f"x{i}": tensor for i, tensor in enumerate(left)}
    return replace(step, operands={**inputs, "y0": y}, attributes={"expression": spell(substituted(node, nodes))})


def _number(tensor: Tensor, workshop: Workshop, known: Known) -> Number | None:
    if tensor.space == "buffer":
        return known.get(buffer_of(tensor))
    if tensor.space != "constant" or dims.product(tensor.shape) != 1:
        return None
    value = workshop.tables.number(tensor)
    return None if value is None else Number(tensor.dtype, value)


def _value(node: Node, numbers: list[Number]) -> Number | None:
    """What the expression is of these operands; None where only a kernel knows."""
    if isinstance(node, Operand):
        return numbers[node.index]
    if isinstance(node, Number):
        return node
    given = [_value(argument, numbers) for argument in node.arguments]
    found = [number for number in given if number is not None]
    if len(found) < len(given) or node.dtype not in FLOATS:
        return None
    with np.errstate(all="ignore"):
        value = _computed(node, [np.dtype(number.dtype).type(number.value) for number in found])
    return None if value is None or not math.isfinite(value) else Number(node.dtype, float(value))


def _computed(node: Call, values: list[Any]) -> Any:
    if node.function == f"cast.{node.dtype}":
        return np.dtype(node.dtype).type(values[0])
    function = COMPUTED.get(node.function)
    return None if function is None else function(*values)
