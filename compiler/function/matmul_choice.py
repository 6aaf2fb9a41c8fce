"""Which kernel multiplies matrices?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hjgc.compiler.function.choice import Limits, chooses, given, grid_blocks, inputs, usual
from hjgc.compiler.function.patterns import Groups, beside_axes
from hjgc.compiler.kernels.declaration import DTYPES, AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.kernels.tiles_of_functions import matmul_tile
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.elementwise import number
from hjgc.plan_format.sizes import Expression

MOST_BATCH = 65535


@dataclass(frozen=True)
class Product:
    """A product as the kernel sees it: [batch, rows, depth] by [batch, depth, outputs], either of one matrix for the
    whole batch. `groups` are the axes of the result that make up batch, rows and outputs."""

    batch: Expression
    rows: Expression
    depth: Expression
    outputs: Expression
    batch_a: bool
    batch_b: bool
    groups: Groups


def product(a: Sequence[Expression], b: Sequence[Expression], *, transpose_a: bool, transpose_b: bool) -> Product:
    """Raises NoTemplate for batches that are broadcast in a mixed way."""
    rows, depth = (a[-1], a[-2]) if transpose_a else (a[-2], a[-1])
    outputs = b[-2] if transpose_b else b[-1]
    left, right = _padded(a[:-2], b[:-2])
    lead = [y if x == 1 else x for x, y in zip(left, right, strict=True)]
    batch_a, batch_b = any(axis != 1 for axis in left), any(axis != 1 for axis in right)
    if not batch_b and not transpose_a:
        whole = dims.product((*lead, rows))
        return Product(1, whole, depth, outputs, False, False, ((), (*lead, rows), (outputs,)))
    if (batch_a and left != lead) or (batch_b and right != lead):
        raise NoTemplate("no kernel multiplies matrices whose batches are broadcast to each other")
    return Product(dims.product(lead), rows, depth, outputs, batch_a, batch_b, (tuple(lead), (rows,), (outputs,)))


def _padded(a: Sequence[Expression], b: Sequence[Expression]) -> tuple[list[Expression], list[Expression]]:
    rank = max(len(a), len(b))
    return [*[1] * (rank - len(a)), *a], [*[1] * (rank - len(b)), *b]


@chooses("matmul")
def choose_matmul(step: Step, target: str, limits: Limits) -> Choice:
    attributes, dtype = step.attributes, step.operands["y0"].dtype
    expression, bias = "x0", inputs(step)[2:]
    if attributes["alpha"] != 1:
        expression = f"mul(x0, {number(dtype, float(attributes['alpha']))})"  # type: ignore[arg-type] (a number)
    if bias and bias[0] is not None:
        scale = attributes["beta"]
        term = "x2" if scale == 1 else f"mul(x2, {number(dtype, float(scale))})"  # type: ignore[arg-type] (a number)
        expression = f"add({expression}, {term})"
    beside = [x for x in bias if x is not None]
    return _choice(step, target, limits, expression, beside, parts=0)


@chooses("matmul_map")
def choose_matmul_map(step: Step, target: str, limits: Limits) -> Choice:
    return _choice(step, target, limits, str(step.attributes["expression"]), given(step)[2:], parts=0)


@chooses("matmul_parts")
def choose_matmul_parts(step: Step, target: str, limits: Limits) -> Choice:
    parts = step.attributes["parts"]
    assert isinstance(parts, int), "as the op declares it"
    return _choice(step, target, limits, "x0", [], parts=parts)


def _choice(
    step: Step, target: str, limits: Limits, expression: str, beside: Sequence[Tensor], *, parts: int
) -> Choice:
    a, b, attributes = step.operands["x0"], step.operands["x1"], step.attributes
    transpose_a, transpose_b = bool(attributes.get("transpose_a", False)), bool(attributes["transpose_b"])
    if a.dtype not in DTYPES:
        raise NoTemplate(f"no kernel multiplies matrices of {a.dtype}")
    found = product(a.shape, b.shape, transpose_a=transpose_a, transpose_b=transpose_b)
    if limits(found.batch)[1] > MOST_BATCH:
        raise NoTemplate(f"expected a batch of up to {MOST_BATCH} matrices")
    if parts and (found.batch != 1 or not isinstance(found.depth, int)):
        raise NoTemplate("no kernel cuts the sums of a batch into parts")
    sides = [usual(limits, found.rows), limits(found.outputs)[1], limits(found.depth)[1]]
    axes: dict[str, AxisValue] = {
        "dtype": a.dtype,
        "result": step.operands["y0"].dtype,
        "outputs": _fixed(found.outputs),
        "depth": _fixed(found.depth),
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
        "batch_a": found.batch_a,
        "batch_b": found.batch_b,
        "parts": parts,
        "expression": expression,
        **beside_axes(beside, found.groups),
        **matmul_tile(target, max(1, limits(found.batch)[0]), *sides, dtype=a.dtype, parts=parts),
        "ahead": has_pdl(target) and _may_come_ahead(b, found),
        "pdl": has_pdl(target),
    }  # fmt: skip
    tiles = dims.mul(grid_blocks(found.rows, int(axes["block_m"])), grid_blocks(found.outputs, int(axes["block_n"])))
    batch = found.batch if limits(found.batch)[0] >= 1 else grid_blocks(found.batch, 1)
    sizes = {"batches": found.batch, "rows": found.rows, "outputs": found.outputs, "depth": found.depth}
    return Choice("tensor_matmul", axes, {**sizes, "tiles": tiles, "batch": batch})


def _may_come_ahead(weight: Tensor, found: Product) -> bool:
    """Is it a matrix that never changes, of whole pieces of 16 bytes?"""
    sides = (_fixed(found.outputs), _fixed(found.depth))
    fixed = weight.space in ("weight", "constant") and not found.batch_b and weight.dtype != "float32"
    return fixed and all(side > 0 and side % 8 == 0 for side in sides)


def _fixed(size: Expression) -> int:
    """A number that a variant is built for; 0 for one that the call says."""
    return size if isinstance(size, int) else 0
