"""Which products do at once what is made of each of their elements: a bias, an activation, what is added?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from hjgc.compiler.function.fusion.flow import FIRST, Flow, Workshop, buffer_of, expression_of, joined_nodes
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import Call, Node, Number, Operand, spell, substituted
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import Attribute


def fuse_products(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    """matmul -> elementwise of the same elements, which alone reads it, becomes matmul_map."""
    renamed: dict[str, Tensor] = {}
    for number, step in enumerate(flow.steps):
        if step.op == "elementwise":
            _fuse(flow, workshop, number, renamed)
    return [workshop.reading(step, renamed) for step in flow.result()]


def _fuse(flow: Flow, workshop: Workshop, number: int, renamed: dict[str, Tensor]) -> None:
    made = flow.steps[number]
    for tensor in made.operands.values():
        place = flow.maker(tensor, "matmul")
        if place is None or not flow.is_free(place) or not flow.only_read_by(tensor, number):
            continue
        again = [x for x in made.operands.values() if x != tensor and buffer_of(x) == buffer_of(tensor)]
        if tensor.shape != made.operands["y0"].shape or again:
            continue
        product, old = flow.steps[place], made.operands["y0"]
        if tensor.base and flow.is_kept(old):
            continue  # a result has the shape of its own
        same = _in_its_shape(workshop, made, tensor, product.operands["y0"]) if tensor.base else made
        fused = None if same is None else _matmul_map(product, same, product.operands["y0"])
        if fused is not None and workshop.has_kernels(fused):
            if tensor.base:
                renamed[old.name] = fused.operands["y0"]
            flow.drop(place)
            flow.put(number, fused)
            return


def _in_its_shape(workshop: Workshop, made: Step, view: Tensor, whole: Tensor) -> Step | None:
    """The step with the product as it is in place of a view of it, and all else in a shape that fits; None where an
    operand goes along a part of an axis of the product's."""
    groups = _groups(view.shape, whole.shape)
    if groups is None:
        return None
    operands = {"y0": workshop.buffer(made.operands["y0"], whole.shape)}
    for role in sorted(made.operands.keys() - {"y0"}):
        x = made.operands[role]
        shape = whole.shape if x == view else _along(x.shape, view.shape, groups, whole.shape)
        if shape is None:
            return None
        operands[role] = whole if x == view else workshop.view(x, shape)
    return replace(made, operands=operands)


def _groups(shape: Sequence[Expression], whole: Sequence[Expression]) -> list[list[int]] | None:
    """Which axes of a view make up each axis of the whole; None where one holds a part of one."""
    left, groups = list(range(len(shape))), list[list[int]]()
    for axis in whole:
        taken, total = list[int](), dims.canonical(1)
        while total != dims.canonical(axis) and left:
            taken.append(left.pop(0))
            total = dims.mul(total, shape[taken[-1]])
        if total != dims.canonical(axis):
            return None
        groups.append(taken)
    if not groups or any(shape[i] != 1 for i in left):
        return None
    groups[-1] += left
    return groups


def _along(
    own: Sequence[Expression], view: Sequence[Expression], groups: Sequence[Sequence[int]], whole: Sequence[Expression]
) -> tuple[Expression, ...] | None:
    """The shape of an operand beside the whole, which had `own` beside the view."""
    axes = [*[1] * (len(view) - len(own)), *own]
    found: list[Expression] = []
    for group, size in zip(groups, whole, strict=True):
        if all(axes[i] == 1 for i in group):
            found.append(1)
        elif all(axes[i] == view[i] for i in group):
            found.append(size)
        else:
            return None
    return tuple(found)


def _matmul_map(product: Step, made: Step, result: Tensor) -> Step:
    """The product with its own bias and factors, and with the expression that is made of it."""
    inputs, node = expression_of(made)
    others = [tensor for tensor in inputs if tensor != result]
    bias = product.operands.get("x2")
    if bias is not None and bias not in others:
        others.append(bias)
    whole = _factored(Operand(0), product, "alpha")
    if bias is not None:
        term = _factored(Operand(others.index(bias) + FIRST), product, "beta")
        whole = Call("add", (whole, term), result.dtype)
    places = [whole if tensor == result else Operand(others.index(tensor) + FIRST) for tensor in inputs]
    operands = {"x0": product.operands["x0"], "x1": product.operands["x1"]}
    operands |= {f"x{i + FIRST}": tensor for i, tensor in enumerate(others)}
    operands["y0"] = made.operands["y0"]
    attributes: dict[str, Attribute] = {
        "transpose_a": product.attributes["transpose_a"],
        "transpose_b": product.attributes["transpose_b"],
        "expression": spell(substituted(node, places)),
    }
    return replace(made, op="matmul_map", operands=operands, attributes=attributes, nodes=joined_nodes(product, made))


def _factored(node: Node, product: Step, name: str) -> Node:
    """The node times a factor of the product's, if that is not 1."""
    factor, dtype = product.attributes[name], product.operands["y0"].dtype
    assert isinstance(factor, int | float), "as the op declares it"
    return node if factor == 1 else Call("mul", (node, Number(dtype, float(factor))), dtype)
