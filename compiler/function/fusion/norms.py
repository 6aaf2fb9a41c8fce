"""Which norms take over what they normalise: a sum with the rows that a product adds to, and parts of the product?

    matmul -> elementwise -> layer_norm     becomes     matmul_parts -> norm_map

A product of few rows has too few tiles for all multiprocessors; its sums are cut into parts then, and the norm adds
them up on its way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hjgc.compiler.function.choice import usual
from hjgc.compiler.function.fusion.flow import FIRST, Flow, Workshop, buffer_of, expression_of, joined_nodes
from hjgc.compiler.kernels.tiles_of_functions import matmul_parts
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import Operand, parse, spell, substituted
from hjgc.plan_format.structs import Attribute


def fuse_norms(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    for number, step in enumerate(flow.steps):
        if step.op == "layer_norm" and "y1" not in step.operands:
            _fuse(flow, workshop, number)
    return flow.result()


def _fuse(flow: Flow, workshop: Workshop, number: int) -> None:
    norm = flow.steps[number]
    x = norm.operands["x0"]
    place = flow.maker(x, "elementwise")
    if place is None or not flow.is_free(place) or x.base or norm.attributes["axis"] not in (-1, len(x.shape) - 1):
        return
    made = flow.steps[place]
    if any(-1 < reader < number for reader in flow.readers(x)):
        return  # what is given to others would come too late for them
    fused = _norm_map(norm, made, alone=flow.only_read_by(x, number))
    if not workshop.has_kernels(fused):
        return
    with_parts = _with_parts(flow, workshop, place, fused)
    if with_parts is not None:
        product, parts, fused = with_parts
        flow.put(product, parts)
    flow.drop(place)
    flow.put(number, fused)


def _norm_map(norm: Step, made: Step, *, alone: bool) -> Step:
    """The norm of the expression; what the expression gives stays a result unless the norm reads it `alone`."""
    inputs, node = expression_of(made)
    node = substituted(node, [Operand(i + FIRST) for i in range(len(inputs))])
    operands = {f"x{i - 1}": norm.operands[f"x{i}"] for i in (1, 2) if f"x{i}" in norm.operands}
    operands |= {f"x{i + FIRST}": tensor for i, tensor in enumerate(inputs)}
    operands["y0"] = norm.operands["y0"]
    values = {role: value for role, value in norm.values.items() if role == "y0"}
    if not alone:
        operands["y1"] = made.operands["y0"]
        values |= {"y1": made.values["y0"]} if "y0" in made.values else {}
    attributes: dict[str, Attribute] = {
        "expression": spell(node),
        "dtype": norm.operands["y0"].dtype,
        "parts": False,
        "epsilon": norm.attributes["epsilon"],
        "center": norm.attributes["center"],
    }
    return replace(norm, op="norm_map", operands=operands, attributes=attributes, values=values,
                   nodes=joined_nodes(made, norm))  # fmt: skip


def _with_parts(flow: Flow, workshop: Workshop, place: int, fused: Step) -> tuple[int, Step, Step] | None:
    """The number of a product that only the fused expression reads, that product in parts, and the norm of them."""
    for role, tensor in fused.operands.items():
        number = flow.maker(tensor, "matmul") if role[0] == "x" and int(role[1:]) >= FIRST else None
        if number is None or tensor.base or not flow.is_free(number) or not flow.only_read_by(tensor, place):
            continue
        parts = _parts(flow.steps[number], workshop)
        norm = None if parts is None else _summing(fused, role, parts.operands["y0"])
        if parts is not None and norm is not None and workshop.has_kernels(parts) and workshop.has_kernels(norm):
            return number, parts, norm
    return None


def _parts(product: Step, workshop: Workshop) -> Step | None:
    """The product in as many parts as are worth it; None if that is one."""
    a, b, y = (product.operands[role] for role in ("x0", "x1", "y0"))
    plain = product.attributes["alpha"] == 1 and not product.attributes["transpose_a"] and "x2" not in product.operands
    if not plain or dims.product(b.shape[:-2]) != 1:
        return None
    rows = usual(workshop.limits, dims.product(y.shape[:-1]))
    outputs, depth = (workshop.limits(x)[1] for x in (y.shape[-1], a.shape[-1]))
    parts = matmul_parts(workshop.targets[0], rows, outputs, depth)
    if parts == 1:
        return None
    summed = workshop.buffer(y, (parts, *y.shape))
    operands = {"x0": a, "x1": b, "y0": replace(summed, dtype="float32")}
    attributes: dict[str, Attribute] = {"transpose_b": product.attributes["transpose_b"], "parts": parts}
    return replace(product, op="matmul_parts", operands=operands, attributes=attributes, values={})


def _summing(norm: Step, role: str, parts: Tensor) -> Step | None:
    """The norm with the sum of these parts in place of that operand, which becomes its first; None where it is read
    twice over, as two operands."""
    old = norm.operands[role]
    others = [r for r in norm.operands if r[0] == "x" and int(r[1:]) >= FIRST and r != role]
    if any(buffer_of(norm.operands[other]) == old.name for other in others):
        return None
    order = [role, *others]
    types = [norm.operands[f"x{i + FIRST}"].dtype for i in range(len(order))]
    dtype = norm.operands["y0"].dtype
    if old.dtype != dtype:
        return None
    node = parse(str(norm.attributes["expression"]), (dtype, dtype, *types))
    moved = {other: i + FIRST for i, other in enumerate(order)}
    places = [Operand(0), Operand(1), *(Operand(moved[f"x{i + FIRST}"]) for i in range(len(order)))]
    kept = {r: tensor for r, tensor in norm.operands.items() if r[0] == "y" or int(r[1:]) < FIRST}
    operands = {**kept, f"x{FIRST}": parts, **{f"x{moved[other]}": norm.operands[other] for other in others}}
    attributes = {**norm.attributes, "expression": spell(substituted(node, places)), "parts": True}
    return replace(norm, operands=operands, attributes=attributes)
