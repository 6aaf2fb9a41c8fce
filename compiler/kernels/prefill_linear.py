"""Linear for many rows: a tile of y = x @ weight.T + bias + residual a program."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, blocks
from hjgc.compiler.kernels.prefill_product import (
    PRODUCT_AXES,
    multiply_tile,
    product_constants,
    tile_columns,
    tile_rows,
)


@triton.jit
def finish(total, bias, residual, y, rows, columns, count, N: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    inside = (rows < count)[:, None] & (columns < N)[None, :]
    places = rows[:, None].to(tl.int64) * N + columns[None, :]
    if BIAS:
        total += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + places, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def prefill_linear(
    x,
    weight,
    bias,
    residual,
    y,
    length,
    N: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
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
        total, wide, low, corner = multiply_tile(
            x, weight, None, rows, more_rows, weight_rows, more_weight_rows,
            count, 0.0, 0, K, K, BLOCK_M, EXTRA_M, BLOCK_N, EXTRA_N, BLOCK_K, STAGES, SWAP,
        )  # fmt: skip
        if PDL and not EARLY:
            gdc_launch_dependents()
        finish(total, bias, residual, y, rows, columns, count, N, BIAS, RESIDUAL)
        if EXTRA_N > 0:
            finish(wide, bias, residual, y, rows, more_columns, count, N, BIAS, RESIDUAL)
        if EXTRA_M > 0:
            finish(low, bias, residual, y, more_rows, columns, count, N, BIAS, RESIDUAL)
            if EXTRA_N > 0:
                finish(corner, bias, residual, y, more_rows, more_columns, count, N, BIAS, RESIDUAL)


def constants(axes: Axes) -> dict[str, AxisValue]:
    flags = {"BIAS": axes["bias"], "RESIDUAL": axes["residual"]}
    return {"N": axes["rows"], **flags, **product_constants(axes)}


TEMPLATE = Template(
    op="linear",
    function=prefill_linear,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("weight", "operand", "dtype"),
        Parameter("bias", "operand", "dtype", when="bias"),
        Parameter("residual", "operand", "dtype", when="residual"),
        Parameter("y", "operand", "dtype"),
        Parameter("length", "field", "int32"),
    ),
    axes=PRODUCT_AXES | {"bias": OneOf((False, True)), "residual": OneOf((False, True))},
    constants=constants,
    grid=lambda letters, axes: (
        blocks(letters["M"], tile_rows(axes)),
        blocks(letters["N"], tile_columns(axes)),
        1,
    ),
)
