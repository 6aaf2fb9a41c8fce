"""Which weights of attention stay float32 on a CPU, from the softmax to the product that they are for?

    softmax(x) -> where(no key is seen, 0, .) -> matmul(., v)

In half precision each would be rounded in between, which a CPU gains nothing from: it computes in float32, and ONNX
Runtime's CPU provider does not round there either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from hjgc.compiler.function.fusion.flow import Flow, Workshop, buffer_of, expression_of
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import Call, Node, Operand, operands_of, spell
from hjgc.plan_format.structs import Attribute

HALVES = ("float16", "bfloat16")
WIDE: DType = "float32"


def widen_weights(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    changed: dict[int, list[Step]] = {}
    for number, step in enumerate(flow.steps):
        if step.op == "softmax" and step.operands["y0"].dtype in HALVES and not step.attributes["log"]:
            changed |= _widened(flow, workshop, number)
    return [now for number, step in enumerate(flow.steps) for now in changed.get(number, [step])]


def _widened(flow: Flow, workshop: Workshop, softmax: int) -> Mapping[int, list[Step]]:
    """The steps in place of those from a softmax to the product; none unless each is read by the next alone."""
    step = flow.steps[softmax]
    cast, x = _cast(workshop, step, step.operands["x0"])
    weights = step.operands["y0"]
    changed = {softmax: [cast, replace(step, operands={"x0": x, "y0": _wide(weights)}, values={})]}
    while True:
        readers = flow.readers(weights)
        if len(readers) != 1 or readers[0] < 0:
            return {}
        number = readers[0]
        step = flow.steps[number]
        if step.op == "matmul" and buffer_of(step.operands["x0"]) == buffer_of(weights):
            return changed | {number: list(_product(workshop, step))}
        chosen = _choice(step, weights) if step.op == "elementwise" else None
        if chosen is None:
            return {}
        changed[number] = [chosen]
        weights = step.operands["y0"]


def _choice(step: Step, weights: Tensor) -> Step | None:
    """The step over wide weights, if it only chooses between them and numbers."""
    inputs, node = expression_of(step)
    place = next(i for i, tensor in enumerate(inputs) if buffer_of(tensor) == buffer_of(weights))
    dtype = step.operands["y0"].dtype
    chosen = _chosen(node, place, dtype) if dtype in HALVES else None
    if chosen is None:
        return None
    operands = step.operands | {f"x{place}": _wide(inputs[place]), "y0": _wide(step.operands["y0"])}
    return replace(step, operands=operands, attributes={"expression": spell(chosen)}, values={})


def _chosen(node: Node, place: int, dtype: DType) -> Node | None:
    """What is float32 where the node is of half precision `dtype`: the weights at that place as they are, numbers of
    others exactly. None where something is computed of the weights."""
    match node:
        case Operand(index) if index == place:
            return node
        case Call("where", (test, one, other)) if _means_the_same(test, place):
            one, other = _chosen(one, place, dtype), _chosen(other, place, dtype)
            return None if one is None or other is None else Call("where", (test, one, other), WIDE)
        case Call(function, (Operand(index) as inner,)) if index == place and function == f"cast.{dtype}":
            return inner
        case _:
            return None if _reads(node, place) else Call(f"cast.{WIDE}", (node,), WIDE)


def _means_the_same(test: Node, place: int) -> bool:
    """Of wide weights: does it ask nothing of them but whether they are numbers?"""
    match test:
        case Call("isnan", (Operand(),)):
            return True
        case Call("and" | "or" | "not", arguments):
            return all(_means_the_same(argument, place) for argument in arguments)
        case _:
            return not _reads(test, place)


def _reads(node: Node, place: int) -> bool:
    return place in operands_of(spell(node))


def _product(workshop: Workshop, step: Step) -> Iterator[Step]:
    """The product of wide operands, and what rounds it."""
    operands = {"x0": _wide(step.operands["x0"])}
    for role in sorted(step.operands.keys() - {"x0", "y0"}):
        cast, operands[role] = _cast(workshop, step, step.operands[role])
        yield cast
    y = step.operands["y0"]
    operands["y0"] = _wide(workshop.buffer(y, y.shape))
    yield replace(step, operands=operands, values={})
    yield replace(_converted(workshop, step, operands["y0"], y), values=step.values)


def _cast(workshop: Workshop, step: Step, tensor: Tensor) -> tuple[Step, Tensor]:
    """A step that makes float32 of an operand, and what it makes."""
    made = _wide(workshop.buffer(tensor, tensor.shape))
    return _converted(workshop, step, tensor, made), made


def _converted(workshop: Workshop, step: Step, x: Tensor, y: Tensor) -> Step:
    attributes: dict[str, Attribute] = {"expression": f"cast.{y.dtype}(x0)"}
    return Step(workshop.name(f"{step.name}.{y.dtype}"), "elementwise", {"x0": x, "y0": y}, attributes, step.nodes)


def _wide(tensor: Tensor) -> Tensor:
    return replace(tensor, dtype=WIDE)
