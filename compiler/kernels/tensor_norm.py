"""Layer norm of the rows of what an expression makes of its operands; parts of a product are added up on the way."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.beside import BESIDE_AXES, PARAMETERS, beside_constants, load_beside, types_beside
from hjgc.compiler.kernels.declaration import (
    ABSENT,
    DTYPES,
    Axes,
    AxisValue,
    OneOf,
    Parameter,
    Template,
    Text,
    Whole,
)
from hjgc.compiler.kernels.formula import formula, refuse_formula


@triton.jit
def add_parts(x, row, columns, rows, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of a row over all parts, in their order: [1, columns] float32."""
    inside = columns < COLUMNS
    total = tl.load(x + row * COLUMNS + columns, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(x + (part * rows + row) * COLUMNS + columns, mask=inside, other=0.0)
    return total[None, :]


@triton.jit
def tensor_norm(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    y0,
    y1,
    rows,
    epsilon,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    CENTER: tl.constexpr,
    EXPRESSION: tl.constexpr,
    TYPES: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    P4: tl.constexpr,
    P5: tl.constexpr,
    P6: tl.constexpr,
    P7: tl.constexpr,
    PDL: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    row = tl.program_id(0)
    lines = row + tl.arange(0, 1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if row < rows:
        none = tl.zeros((1, BLOCK), tl.float32)
        if PARTS > 0:
            e2 = add_parts(x2, row, columns, rows, PARTS, COLUMNS)
        else:
            e2 = load_beside(x2, 0, lines, columns, rows, COLUMNS, none, P2)
        e3 = load_beside(x3, 0, lines, columns, rows, COLUMNS, none, P3)
        e4 = load_beside(x4, 0, lines, columns, rows, COLUMNS, none, P4)
        e5 = load_beside(x5, 0, lines, columns, rows, COLUMNS, none, P5)
        e6 = load_beside(x6, 0, lines, columns, rows, COLUMNS, none, P6)
        e7 = load_beside(x7, 0, lines, columns, rows, COLUMNS, none, P7)
        wide = formula(EXPRESSION, TYPES, (none, none, e2, e3, e4, e5, e6, e7))
        # What is normalised is what would be stored.
        stored = tl.sum(tl.broadcast_to(wide, (1, BLOCK)), 0).to(y0.dtype.element_ty)
        values = tl.where(inside, stored.to(tl.float32), 0.0)
        if y1 is not None:
            tl.store(y1 + row * COLUMNS + columns, stored, mask=inside)
        if CENTER:
            values = tl.where(inside, values - tl.sum(values, 0) / COLUMNS, 0.0)
        normal = values * tl.rsqrt(tl.sum(values * values, 0) / COLUMNS + epsilon)
        if x0 is not None:
            normal *= tl.load(x0 + columns, mask=inside, other=0.0).to(tl.float32)
        if x1 is not None:
            normal += tl.load(x1 + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(y0 + row * COLUMNS + columns, normal.to(y0.dtype.element_ty), mask=inside)


def constants(axes: Axes) -> dict[str, AxisValue]:
    columns = int(axes["columns"])
    return {
        "COLUMNS": columns,
        "BLOCK": triton.next_power_of_2(columns),
        "PARTS": axes["parts"],
        "CENTER": axes["center"],
        "EXPRESSION": axes["expression"],
        **beside_constants(axes, types(axes)),
        "PDL": axes["pdl"],
    }


def types(axes: Axes) -> tuple[str, ...]:
    """Those of the expression: parts of a sum stand for a number of the norm's own type."""
    dtype = str(axes["dtype"])
    found = types_beside(axes, dtype)
    return (dtype, dtype, dtype, *found[3:]) if axes["parts"] else found


def refuse(axes: Axes) -> str | None:
    return refuse_formula(str(axes["expression"]), types(axes))


TEMPLATE = Template(
    op="norm_map",
    function=tensor_norm,
    parameters=(
        Parameter("x0", "operand", "x0", when="x0"),
        Parameter("x1", "operand", "x1", when="x1"),
        *PARAMETERS,
        Parameter("y0", "operand", "dtype"),
        Parameter("y1", "operand", "dtype", when="second"),
        Parameter("rows", "size", "int32"),
        Parameter("epsilon", "attribute", "float32"),
    ),
    axes={
        "columns": Whole(1, 1 << 16),
        "dtype": OneOf(DTYPES),
        "x0": OneOf((ABSENT, *DTYPES)),
        "x1": OneOf((ABSENT, *DTYPES)),
        "second": OneOf((False, True)),
        "parts": Whole(0, 64),
        "center": OneOf((False, True)),
        "expression": Text(),
        **BESIDE_AXES,
        "warps": OneOf((1, 2, 4, 8, 16)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["programs"], 1, 1),
    refuse=refuse,
)
