"""Which products of the same rows become one, their weights stacked: queries, keys and values?

Only where attention reads them, since it takes heads from any columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from hjgc.compiler.function.fusion.flow import Flow, Workshop, buffer_of, joined_nodes
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format.structs import Attribute

ROLES = ("x0", "x1", "x2")


def merge_siblings(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    for number, step in enumerate(flow.steps):
        if step.op == "attention_rows":
            _merge(flow, workshop, number)
    return flow.result()


def _merge(flow: Flow, workshop: Workshop, number: int) -> None:
    attention = flow.steps[number]
    makers = [flow.maker(attention.operands[role]) for role in ROLES]
    places = [place for place in makers if place is not None]
    if len(places) != len(ROLES) or len(set(places)) != len(ROLES) or not all(map(flow.is_free, places)):
        return
    products = [flow.steps[place] for place in places]
    if not all(flow.only_read_by(product.operands["y0"], number) for product in products):
        return
    if any(_width(p) != attention.operands[role].shape[-1] for p, role in zip(products, ROLES, strict=True)):
        return  # rows of a product that are several of attention's, or a part of one
    whole = _stacked(products, workshop)
    if whole is None or not workshop.has_kernels(whole):
        return
    merged = _reading(attention, whole.operands["y0"], [_width(product) for product in products], workshop)
    if workshop.has_kernels(merged):
        flow.drop(*places)
        flow.put(min(places), whole)
        flow.put(number, merged)


def _width(product: Step) -> int:
    width = product.operands["y0"].shape[-1]
    assert isinstance(width, int), "rows of attention have a number of columns"
    return width


def _stacked(products: Sequence[Step], workshop: Workshop) -> Step | None:
    """One product for all; None where they differ in more than their weights."""
    first = products[0]
    matrices = [product.operands.get("x1") for product in products]
    biases = [product.operands.get("x2") for product in products]
    if any(_kind(product) != _kind(first) for product in products) or None in matrices:
        return None
    turned = not first.attributes["transpose_b"]
    weight = workshop.tables.stacked([x for x in matrices if x is not None], [turned] * len(products))
    if weight is None:
        return None
    operands = {"x0": first.operands["x0"], "x1": weight}
    if biases[0] is not None:
        bias = workshop.tables.stacked([x for x in biases if x is not None], [False] * len(products))
        if bias is None:
            return None
        operands["x2"] = bias
    y = first.operands["y0"]
    operands["y0"] = workshop.buffer(y, (*y.shape[:-1], sum(map(_width, products))))
    attributes: dict[str, Attribute] = {**first.attributes, "transpose_b": True}
    return replace(first, operands=operands, attributes=attributes, nodes=joined_nodes(*products), values={})


def _kind(product: Step) -> object:
    """What products must have in common to be one: all but the numbers of their weights and biases."""
    if product.op not in ("matmul", "matmul_map") or product.attributes["transpose_a"]:
        return object()
    weight, bias = product.operands["x1"], product.operands.get("x2")
    fixed = weight.space in ("weight", "constant") and len(weight.shape) == 2
    row = bias is None or (bias.space in ("weight", "constant") and bias.shape == product.operands["y0"].shape[-1:])
    if not fixed or not row or "x3" in product.operands:
        return object()
    x = product.operands["x0"]
    attributes = tuple(sorted(product.attributes.items()))
    return product.op, x.name, attributes, weight.dtype, bias is None, product.operands["y0"].shape[:-1]


def _reading(attention: Step, rows: Tensor, widths: Sequence[int], workshop: Workshop) -> Step:
    """The attention with all heads in the same rows."""
    columns: Sequence[int] = attention.attributes["columns"]  # type: ignore[assignment] (numbers, as the op declares it)
    shapes = [attention.operands[role].shape for role in ROLES]
    operands = dict(attention.operands)
    for role, shape in zip(ROLES, shapes, strict=True):
        operands[role] = workshop.view(rows, (*shape[:2], rows.shape[-1]))
    before = [sum(widths[:i]) for i in range(len(widths))]
    attributes = {**attention.attributes, "columns": tuple(c + b for c, b in zip(columns, before, strict=True))}
    assert buffer_of(operands["x0"]) == buffer_of(operands["x2"]), "views of one buffer"
    return replace(attention, operands=operands, attributes=attributes)
