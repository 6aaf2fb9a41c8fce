"""Which operands of an expression are numbers that the compiler knows?

A constant of one element becomes a number of the expression: nothing has to be loaded for it, and what the expression
means can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hjgc.compiler.function.fusion.flow import Flow, Workshop, expression_of
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import Number, Operand, spell, substituted
from hjgc.plan_format.ops.shapes import broadcast


def inline_numbers(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    """The steps with such operands of elementwise ones gone, where the result keeps its shape."""
    return tuple(_inlined(step, workshop) if step.op == "elementwise" else step for step in flow.steps)


def _inlined(step: Step, workshop: Workshop) -> Step:
    operands, node = expression_of(step)
    numbers = [_number(tensor, workshop) for tensor in operands]
    left = [tensor for tensor, known in zip(operands, numbers, strict=True) if known is None]
    y = step.operands["y0"]
    if len(left) == len(operands) or not left or broadcast([tensor.shape for tensor in left]) != tuple(y.shape):
        return step
    places = iter(range(len(left)))
    nodes = [Operand(next(places)) if known is None else known for known in numbers]
    inputs = {f"x{i}": tensor for i, tensor in enumerate(left)}
    return replace(step, operands={**inputs, "y0": y}, attributes={"expression": spell(substituted(node, nodes))})


def _number(tensor: Tensor, workshop: Workshop) -> Number | None:
    if tensor.space != "constant" or dims.product(tensor.shape) != 1:
        return None
    value = workshop.tables.number(tensor)
    return None if value is None else Number(tensor.dtype, value)
