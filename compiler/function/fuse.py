"""Which elementwise launches are one: those whose result only the next one reads?

The expression of the earlier takes the place of the operand in the later, as often as that stands there: only what
costs less than reading it is computed again. Nothing is rounded otherwise: each function gives a number of its own
type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hjgc.compiler.kernels.tiles_of_functions import MOST_OPERANDS
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import Call, Node, Operand, parse, spell, substituted

CHEAP_AGAIN = 4
"""Functions that are computed again rather than read."""
MOST_FUNCTIONS = 48
"""Of one launch: past that a kernel has more numbers at hand than registers."""


def fuse(steps: Sequence[Step], kept: Iterable[str]) -> tuple[Step, ...]:
    """The steps with chains of elementwise ones fused. `kept` are buffers that somebody besides the steps reads."""
    found, before, wanted = tuple(steps), -1, tuple(kept)
    while len(found) != before:  # what two steps read that have become one is read by one
        before, found = len(found), _fused(found, wanted)
    return found


def _fused(steps: Sequence[Step], kept: Iterable[str]) -> tuple[Step, ...]:
    readers = Counter(_buffer(tensor) for step in steps for role, tensor in step.operands.items() if role[0] == "x")
    wanted = {*kept, *(tensor.base for step in steps for tensor in step.operands.values() if tensor.base)}
    waiting: dict[str, Step] = {}
    done: list[Step | None] = []
    places: dict[str, int] = {}
    """Where the step is that gives a tensor."""
    for step in steps:
        fused, taken = _absorb(step, waiting) if step.op == "elementwise" else (step, [])
        for name in taken:
            done[places[name]] = None
        if step.op == "elementwise":
            y = step.operands["y0"].name
            places[y] = len(done)
            if readers[y] == 1 and y not in wanted:
                waiting[y] = fused
        done.append(fused)
    return tuple(step for step in done if step is not None)


def _buffer(tensor: Tensor) -> str:
    return tensor.base or tensor.name


def _absorb(step: Step, waiting: dict[str, Step]) -> tuple[Step, list[str]]:
    """The step with every operand computed on the spot that only it reads, and the names of these."""
    shape, taken = step.operands["y0"].shape, list[str]()
    for tensor in list(step.operands.values()):
        inner = waiting.get(tensor.name)
        if inner is None or tensor.base or tensor.shape != shape:
            continue
        made = _joined(step, inner, tensor)
        if made is not None:
            step = made
            del waiting[tensor.name]
            taken.append(tensor.name)
    return step, taken


def _joined(outer: Step, inner: Step, operand: Tensor) -> Step | None:
    """One step for both; None if it would be too large, or compute much again."""
    outers, inners = _inputs(outer), _inputs(inner)
    repeated = _uses(_parsed(outer, outers), [i for i, tensor in enumerate(outers) if tensor == operand])
    if repeated > 1 and repeated * _functions(_parsed(inner, inners)) > CHEAP_AGAIN:
        return None
    kept = [tensor for tensor in outers if tensor != operand]
    inputs = list(dict.fromkeys([*kept, *inners]))
    inner_node = substituted(_parsed(inner, inners), [Operand(inputs.index(tensor)) for tensor in inners])
    places = [inner_node if tensor == operand else Operand(inputs.index(tensor)) for tensor in outers]
    node = substituted(_parsed(outer, outers), places)
    if len(inputs) > MOST_OPERANDS or _functions(node) > MOST_FUNCTIONS:
        return None
    operands = {f"x{i}": tensor for i, tensor in enumerate(inputs)} | {"y0": outer.operands["y0"]}
    nodes = tuple(dict.fromkeys((*inner.nodes, *outer.nodes)))
    return replace(outer, operands=operands, attributes={"expression": spell(node)}, nodes=nodes)


def _inputs(step: Step) -> list[Tensor]:
    return [step.operands[f"x{i}"] for i in range(len(step.operands) - 1)]


def _parsed(step: Step, inputs: Sequence[Tensor]) -> Node:
    types: tuple[DType, ...] = tuple(tensor.dtype for tensor in inputs)
    return parse(str(step.attributes["expression"]), types)


def _uses(node: Node, operands: Sequence[int]) -> int:
    """How often these operands stand in it."""
    if isinstance(node, Operand):
        return int(node.index in operands)
    return sum(_uses(argument, operands) for argument in node.arguments) if isinstance(node, Call) else 0


def _functions(node: Node) -> int:
    return 1 + sum(map(_functions, node.arguments)) if isinstance(node, Call) else 0
