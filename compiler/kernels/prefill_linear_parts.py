"""Linear for many rows and few columns: the sum over K cut into parts, each kept in float32 for `prefill_join`."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, Parameter, Template, Whole, blocks
from hjgc.compiler.kernels.prefill_product import (
    PRODUCT_AXES,
    multiply_tile,
    product_constants,
    tile_columns,
    tile_rows,
)


@triton.jit
def finish(total, parts, rows, columns, count, N: tl.constexpr):
    inside = (rows < count)[:, None] & (columns < N)[None, :]
    tl.store(parts + rows[:, None].to(tl.int64) * N + columns[None, :], total, mask=inside)


@triton.jit
def prefill_linear_parts(
    x,
    weight,
    parts,
    length,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EXTRA_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXTRA_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SWAP: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    first_row = tl.program_id(0) * (BLOCK_M + EXTRA_M)
    first_column = tl.program_id(1) * (BLOCK_N + EXTRA_N)
    columns = first_column + tl.arange(0, BLOCK_N)
    more_columns = first_column + BLOCK_N + tl.arange(0, EXTRA_N if EXTRA_N > 0 else 1)
    first = tl.program_id(2) * SPAN
    weight_rows = tl.minimum(columns, N - 1)
    more_weight_rows = tl.minimum(more_columns, N - 1)
    if PDL:
        if EARLY:
            gdc_launch_dependents()
        gdc_wait()
    count = tl.load(length)
    if first_row < count:
        rows = first_row + tl.arange(0, BLOCK_M)
        more_rows = first_row + BLOCK_M + tl.arange(0, EXTRA_M if EXTRA_M > 0 else 1)
        last = tl.minimum(first + SPAN, K)
        total, wide, low, corner = multiply_tile(
            x, weight, None, rows, more_rows, weight_rows, more_weight_rows,
            count, 0.0, first, last, K, BLOCK_M, EXTRA_M, BLOCK_N, EXTRA_N, BLOCK_K, STAGES, SWAP,
        )  # fmt: skip
        if PDL and not EARLY:
            gdc_launch_dependents()
        part = parts + tl.program_id(2).to(tl.int64) * ROWS * N
        finish(total, part, rows, columns, count, N)
        if EXTRA_N > 0:
            finish(wide, part, rows, more_columns, count, N)
        if EXTRA_M > 0:
            finish(low, part, more_rows, columns, count, N)
            if EXTRA_N > 0:
                finish(corner, part, more_rows, more_columns, count, N)


def constants(axes: Axes) -> dict[str, AxisValue]:
    steps = -(-int(axes["columns"]) // int(axes["block_k"]))
    span = -(-steps // int(axes["splits"])) * int(axes["block_k"])
    return {"N": axes["rows"], "ROWS": axes["row_capacity"], "SPAN": span, **product_constants(axes)}


TEMPLATE = Template(
    op="linear_parts",
    function=prefill_linear_parts,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("weight", "operand", "dtype"),
        Parameter("parts", "operand", "float32"),
        Parameter("length", "field", "int32"),
    ),
    axes=PRODUCT_AXES | {"splits": Whole(1, 16), "row_capacity": Whole(1, 1 << 16)},
    constants=constants,
    grid=lambda letters, axes: (
        blocks(letters["M"], tile_rows(axes)),
        blocks(letters["N"], tile_columns(axes)),
        int(axes["splits"]),
    ),
)
