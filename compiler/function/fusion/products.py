"""Which products do at once what is made of each of their elements: a bias, an activation, what is added?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hjgc.compiler.function.fusion.flow import FIRST, Flow, Workshop, buffer_of, expression_of, joined_nodes
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format.elementwise import Call, Node, Number, Operand, spell, substituted
from hjgc.plan_format.structs import Attribute


def fuse_products(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    """matmul -> elementwise of the same shape, which alone reads it, becomes matmul_map."""
    for number, step in enumerate(flow.steps):
        if step.op == "elementwise":
            _fuse(flow, workshop, number)
    return flow.result()


def _fuse(flow: Flow, workshop: Workshop, number: int) -> None:
    made = flow.steps[number]
    for tensor in made.operands.values():
        place = flow.maker(tensor, "matmul")
        if place is None or not flow.is_free(place) or not flow.only_read_by(tensor, number):
            continue
        again = [x for x in made.operands.values() if x != tensor and buffer_of(x) == tensor.name]
        if tensor.base or tensor.shape != made.operands["y0"].shape or again:
            continue
        fused = _matmul_map(flow.steps[place], made, tensor)
        if workshop.has_kernels(fused):
            flow.drop(place)
            flow.put(number, fused)
            return


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
