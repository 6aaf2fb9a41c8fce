"""Which launches are attention, written out?

    matmul(q, k.T) -> scale, mask -> softmax -> matmul(v) -> transpose

Queries, keys and values are followed back through scales, transposes and views to the rows that some product left, in
which the heads lie side by side; the kernel reads them there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hjgc.compiler.function.fusion.flow import Flow, Workshop, expression_of, joined_nodes
from hjgc.compiler.function.fusion.layout import Layout, contiguous
from hjgc.compiler.kernels.declaration import DTYPES
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.elementwise import Call, Node, Number, Operand, type_of
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import Attribute
from hjgc.plan_format.verify_launch import FLOAT32_MAX

HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True)
class Scores:
    """What softmax is taken of: a scale times the scores, and what is added to it."""

    scale: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """A tensor of heads as it lies in its buffer, and what it was scaled by."""

    source: Tensor
    layout: Layout
    scale: float


@dataclass(frozen=True)
class Laid:
    """A buffer as [B, rows, columns], the column from which on heads lie in it side by side, and their scale."""

    tensor: Tensor
    column: int
    scale: float


@dataclass(frozen=True)
class Found:
    """Attention: queries, keys (as [B, G, T, D]) and values as they may be read, what softmax is taken of, the shapes
    of queries and values, and the steps that say so."""

    query: tuple[Rows, ...]
    key: tuple[Rows, ...]
    value: tuple[Rows, ...]
    scores: Scores
    shapes: tuple[tuple[Expression, ...], tuple[Expression, ...]]
    causal: bool
    guarded: bool
    steps: tuple[Step, ...]


def fuse_attention(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    renamed: dict[str, Tensor] = {}
    for number, step in enumerate(flow.steps):
        if step.op in ("matmul", "scaled_attention"):
            _fuse(flow, workshop, number, renamed)
    return [workshop.reading(step, renamed) for step in flow.result()]


def _fuse(flow: Flow, workshop: Workshop, number: int, renamed: dict[str, Tensor]) -> None:
    """Attention whose last product is this step, or that is one step, and the transpose behind it."""
    last = flow.steps[number]
    y = last.operands["y0"]
    behind = flow.readers(y)
    if len(y.shape) != 4 or len(behind) != 1 or behind[0] < 0:
        return
    turned = flow.steps[behind[0]]
    if turned.op != "transpose" or turned.operands["x0"] != y or not _gives_rows(turned):
        return
    found = _as_it_is(flow, last) if last.op == "scaled_attention" else _written_out(flow, last)
    fused = None if found is None else _assembled(workshop, found, turned)
    old = turned.operands["y0"]
    if fused is None or -1 in flow.readers(old) or not workshop.has_kernels(fused):
        return
    renamed[old.name] = fused.operands["y0"]
    flow.put(behind[0], fused)


def _gives_rows(turned: Step) -> bool:
    """Are the elements then in the order of [B, rows, heads, size]? Axes of one element may be anywhere."""
    axes: Sequence[int] = turned.attributes["axes"]  # type: ignore[assignment] (numbers, as the op declares it)
    shape = turned.operands["x0"].shape
    return [axis for axis in axes if shape[axis] != 1] == [axis for axis in HEADS_FIRST if shape[axis] != 1]


def _as_it_is(flow: Flow, step: Step) -> Found | None:
    """One step: without windows, lengths, a soft cap or its scores."""
    attributes = step.attributes
    plain = attributes["softcap"] == 0 and attributes["left"] == -1 and attributes["right"] == -1
    if not plain or not step.operands.keys() <= {"x0", "x1", "x2", "x3", "y0"}:
        return None
    mask = step.operands.get("x3")
    if mask is not None and mask.shape[-1:] != step.operands["x2"].shape[2:3]:
        return None  # keys past the mask are not seen
    query, key, value = (_traced(flow, step.operands[role]) for role in ("x0", "x1", "x2"))
    scale, causal = attributes["scale"], bool(attributes["causal"])
    assert isinstance(scale, int | float), "as the op declares it"
    scores = Scores(scale, step.operands.get("x3"))
    shapes = (tuple(step.operands["x0"].shape), tuple(step.operands["x2"].shape))
    return Found(query, key, value, scores, shapes, causal, True, (step,))


def _is_plain(product: Step) -> bool:
    return product.attributes["alpha"] == 1 and not product.attributes["transpose_a"] and "x2" not in product.operands


def _written_out(flow: Flow, last: Step) -> Found | None:
    """Products, softmax and what lies between."""
    weights, guarded = _unguarded(flow, last.operands["x0"])
    place = flow.maker(weights, "softmax")
    if place is None or last.attributes["transpose_b"] or not _is_plain(last):
        return None
    softmax = flow.steps[place]
    rank = len(softmax.operands["x0"].shape)
    if softmax.attributes["log"] or softmax.attributes["axis"] not in (-1, rank - 1) or rank != 4:
        return None
    made = _scores(flow, softmax.operands["x0"])
    product = None if made is None else flow.steps[made[1]]
    if made is None or product is None or product.attributes["transpose_a"] or "x2" in product.operands:
        return None
    read = (*_pair(product), last.operands["x1"])
    if any(len(x.shape) != 4 for x in read):
        return None
    query, key, value = (_traced(flow, x) for x in read)
    if not product.attributes["transpose_b"]:
        key = tuple(replace(rows, layout=rows.layout.transposed((0, 1, 3, 2))) for rows in key)
    alpha = product.attributes["alpha"]
    assert isinstance(alpha, int | float), "as the op declares it"
    scores = replace(made[0], scale=made[0].scale * alpha)
    shapes = (tuple(product.operands["x0"].shape), tuple(last.operands["x1"].shape))
    return Found(query, key, value, scores, shapes, False, guarded, (product, last))


def _pair(product: Step) -> tuple[Tensor, Tensor]:
    return product.operands["x0"], product.operands["x1"]


def _unguarded(flow: Flow, weights: Tensor) -> tuple[Tensor, bool]:
    """The weights before casts and before zeros were put where they are no numbers, and whether they were."""
    place = flow.maker(weights, "elementwise")
    if place is None:
        return weights, False
    inputs, whole = expression_of(flow.steps[place])
    node = _uncast(whole, inputs)
    match node:
        case Operand():
            return inputs[node.index], False
        case Call("where", (Call("isnan", (Operand() as tested,)), Number(_, 0), Operand() as kept)) if tested == kept:
            return inputs[kept.index], True
        case _:
            return weights, False


def _uncast(node: Node, inputs: Sequence[Tensor]) -> Node:
    """Without casts between the floating-point types that attention is computed in float32 for."""
    if not isinstance(node, Call):
        return node
    arguments = tuple(_uncast(argument, inputs) for argument in node.arguments)
    given = type_of(node.arguments[0], [x.dtype for x in inputs])
    if node.function.startswith("cast.") and node.dtype in DTYPES and given in DTYPES:
        return arguments[0]
    return replace(node, arguments=arguments)


def _scores(flow: Flow, tensor: Tensor) -> tuple[Scores, int] | None:
    """What softmax is taken of, and the product that gives the scores."""
    product = flow.maker(tensor, "matmul")
    if product is not None:
        return Scores(), product
    place = flow.maker(tensor, "elementwise")
    if place is None:
        return None
    inputs, whole = expression_of(flow.steps[place])
    products = [i for i, x in enumerate(inputs) if flow.maker(x, "matmul") is not None and x.shape == tensor.shape]
    if len(products) != 1:
        return None
    node = _uncast(whole, inputs)
    scores = _linear(node, products[0], inputs)
    number = flow.maker(inputs[products[0]], "matmul")
    return None if scores is None or number is None else (scores, number)


def _linear(node: Node, product: int, inputs: Sequence[Tensor]) -> Scores | None:
    """The expression as scale * product + mask, if it is that."""
    match node:
        case Operand(index) if index == product:
            return Scores()
        case Call("mul", (Number(_, factor), inner)) | Call("mul", (inner, Number(_, factor))):
            return _scaled(_linear(inner, product, inputs), float(factor))
        case Call("div", (inner, Number(_, factor))) if factor:
            return _scaled(_linear(inner, product, inputs), 1 / float(factor))
        case Call("add", (Operand(index), inner)) if index != product:
            return _masked(_linear(inner, product, inputs), inputs[index])
        case Call("add", (inner, Operand(index))) if index != product:
            return _masked(_linear(inner, product, inputs), inputs[index])
        case Call("where", (Operand(index), inner, Number(_, value))) if value == -math.inf:
            return _masked(_linear(inner, product, inputs), inputs[index])
        case _:
            return None


def _scaled(scores: Scores | None, factor: float) -> Scores | None:
    return None if scores is None or scores.mask is not None else Scores(scores.scale * factor)


def _masked(scores: Scores | None, mask: Tensor) -> Scores | None:
    return None if scores is None or scores.mask is not None else Scores(scores.scale, mask)


def _traced(flow: Flow, tensor: Tensor) -> tuple[Rows, ...]:
    """What it can be read from: back through scales, transposes, cuts and views, the furthest first, itself last."""
    place = next((p for op in ("elementwise", "transpose", "slice") if (p := flow.maker(tensor, op)) is not None), None)
    found: list[Rows] = []
    if place is not None:
        made = flow.steps[place]
        factor = _factor(made) if made.op == "elementwise" else 1.0
        for inner in () if factor is None else _traced(flow, made.operands["x0"]):
            layout = _moved(inner.layout, made)
            layout = None if layout is None else layout.reshaped(tensor.shape)
            if layout is not None and factor is not None:
                found.append(Rows(inner.source, layout, inner.scale * factor))
    return (*found, Rows(tensor, contiguous(tensor.shape), 1.0))


def _moved(layout: Layout, made: Step) -> Layout | None:
    """Where what the step gives lies in what it reads."""
    if made.op == "transpose":
        axes: Sequence[int] = made.attributes["axes"]  # type: ignore[assignment] (numbers, as the op declares it)
        return layout.transposed(axes)
    if made.op == "slice":
        starts: Sequence[int] = made.attributes["starts"]  # type: ignore[assignment] (numbers, as the op declares it)
        if made.attributes["steps"] != (1,) * len(starts):
            return None
        found: Layout | None = layout
        for axis, (start, size) in enumerate(zip(starts, made.operands["y0"].shape, strict=True)):
            found = None if found is None else found.cut(axis, start, size)
        return found
    return layout


def _factor(made: Step) -> float | None:
    """The number that a step multiplies its one operand by."""
    if len(made.operands) != 2:
        return None
    inputs, node = expression_of(made)
    scores = _linear(node, 0, inputs)
    return None if scores is None else scores.scale


def _assembled(workshop: Workshop, found: Found, turned: Step) -> Step | None:
    """One step for all; None where the heads do not lie side by side in rows. What it leaves without a reader goes."""
    (batch, heads, rows, size), (_, groups, keys, width) = found.shapes
    if not all(isinstance(number, int) for number in (heads, size, groups)) or width != size:
        return None
    assert isinstance(heads, int) and isinstance(size, int) and isinstance(groups, int)
    query = _in_rows(workshop, found.query, rows, (batch, heads, size))
    key = _in_rows(workshop, found.key, keys, (batch, groups, size))
    value = _in_rows(workshop, found.value, keys, (batch, groups, size))
    if query is None or key is None or value is None or value.scale != 1:
        return None
    scale = float(found.scores.scale * query.scale * key.scale)
    if not abs(scale) <= FLOAT32_MAX:
        return None
    operands = {"x0": query.tensor, "x1": key.tensor, "x2": value.tensor}
    if found.scores.mask is not None:
        operands["x3"] = found.scores.mask
    operands["y0"] = workshop.buffer(turned.operands["y0"], (batch, rows, heads * size))
    attributes: dict[str, Attribute] = {
        "heads": heads,
        "groups": groups,
        "size": size,
        "columns": (query.column, key.column, value.column),
        "scale": scale,
        "causal": found.causal,
        "guarded": found.guarded,
    }
    nodes = joined_nodes(*found.steps, turned)
    return replace(turned, op="attention_rows", operands=operands, attributes=attributes, nodes=nodes, values={})


def _in_rows(
    workshop: Workshop, ways: Sequence[Rows], count: Expression, heads: tuple[Expression, int, int]
) -> Laid | None:
    """The first of the ways in which the heads lie side by side, if there is one."""
    batch, number, size = heads
    for rows in ways:
        strides, first = rows.layout.strides(), rows.layout.offset
        if strides is None or not isinstance(first, int):
            continue
        width = strides[2] if count != 1 else number * size
        wanted = [dims.mul(count, width), size, width, 1]
        shape = (batch, number, count, size)
        fits = all(stride == want or axis == 1 for stride, want, axis in zip(strides, wanted, shape, strict=True))
        whole = (batch, count, width)
        if not fits or not isinstance(width, int) or first + number * size > width:
            continue
        if dims.product(whole) == dims.product(rows.source.shape):
            return Laid(workshop.view(rows.source, whole), first, rows.scale)
    return None
