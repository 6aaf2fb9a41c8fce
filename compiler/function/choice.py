"""Which template, with which axes, runs a launch of a tensor op on a GPU, and what does the launch pass to it?

A chooser looks at one step and the ranges of its sizes. It raises NoTemplate, with the reason in words, where no kernel
of hjgc computes the step: then the node goes to an island.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache

from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Binary, Expression

Limits = Callable[[Expression], tuple[int, int]]
"""The least and the most that a size may be."""
Chooser = Callable[[Step, str, Limits], Choice]
CHOOSERS: dict[str, Chooser] = {}
MODULES = ("moving_choice", "placing_choice", "row_choice", "matmul_choice", "norm_choice", "attention_choice")
"""Where the choosers are, beside this file."""
USUAL_ROWS = 128
"""Of a call whose rows the plan leaves open, where it allows for so many: what tiles are chosen for."""
MOST_ELEMENTS = (1 << 31) - (1 << 16)
"""Kernels count the elements of an operand in 32 bits, and the last block reaches past them."""


def chooses(*ops: str) -> Callable[[Chooser], Chooser]:
    """This chooser is for steps of these ops."""

    def register(chooser: Chooser) -> Chooser:
        for op in ops:
            assert op not in CHOOSERS, f"two choosers for {op}"
            CHOOSERS[op] = chooser
        return chooser

    return register


@cache
def _register_all() -> None:
    for name in MODULES:
        importlib.import_module(f"hjgc.compiler.function.{name}")


def choose_tensor(step: Step, target: str, limits: Limits) -> Choice:
    """How a step of a tensor op runs on a GPU. Raises NoTemplate."""
    _register_all()
    if step.op not in CHOOSERS:
        raise NoTemplate(f"no kernel computes {step.op}")
    for tensor in step.operands.values():
        if limits(dims.product(tensor.shape))[1] > MOST_ELEMENTS:
            raise NoTemplate(f"{step.op}: expected operands of up to {MOST_ELEMENTS} elements")
    return CHOOSERS[step.op](step, target, limits)


def inputs(step: Step) -> list[Tensor | None]:
    """x0, x1, ... in order; None for one that is left out."""
    last = max((int(role[1:]) for role in step.operands if role[0] == "x"), default=-1)
    return [step.operands.get(f"x{i}") for i in range(last + 1)]


def given(step: Step) -> list[Tensor]:
    """x0, x1, ... of an op that leaves none out."""
    found = inputs(step)
    assert all(tensor is not None for tensor in found), "all operands are there"
    return [tensor for tensor in found if tensor is not None]


def usual(limits: Limits, rows: Expression) -> int:
    """How many rows a call is expected to have."""
    low, high = limits(rows)
    return max(low, min(high, USUAL_ROWS))


def grid_blocks(count: Expression, block: int) -> Expression:
    """How many blocks cover `count`: one at least, since no grid is empty."""
    found = dims.ceil_div(count, block)
    return max(1, found) if isinstance(found, int) else Binary("max", 1, found)


def strides(shape: Sequence[Expression]) -> list[Expression]:
    """In elements, of a tensor whose rows lie one behind the other."""
    found: list[Expression] = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        found[axis] = dims.mul(found[axis + 1], shape[axis + 1])
    return found
