"""Gated linear for many rows: gate and up of the same column side by side in one tile, so the gate meets its up in
registers."""

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
def finish(total, bias, y, rows, first, weight_rows, count, F: tl.constexpr, BIAS: tl.constexpr):
    """Columns of the tile from `first` on are gate and up in turn: half as many of y."""
    M: tl.constexpr = total.shape[0]
    N: tl.constexpr = total.shape[1] // 2
    if BIAS:
        total += tl.load(bias + weight_rows).to(tl.float32)[None, :]
    gate, up = tl.split(tl.reshape(total, (M, N, 2)))
    active = gate / (1.0 + tl.exp(-gate)) * up
    places = first // 2 + tl.arange(0, N)
    inside = (rows < count)[:, None] & (places < F)[None, :]
    tl.store(y + rows[:, None].to(tl.int64) * F + places[None, :], active.to(y.dtype.element_ty), mask=inside)


@triton.jit
def prefill_gated_linear(
    x,
    norm_weight,
    weight,
    bias,
    y,
    length,
    epsilon,
    F: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
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
    weight_rows = tl.minimum(columns // 2, F - 1) + (columns % 2) * F
    more_weight_rows = tl.minimum(more_columns // 2, F - 1) + (more_columns % 2) * F
    if PDL:
        if EARLY:
            gdc_launch_dependents()
        gdc_wait()
    count = tl.load(length)
    if first_row < count:
        rows = first_row + tl.arange(0, BLOCK_M)
        more_rows = first_row + BLOCK_M + tl.arange(0, EXTRA_M if EXTRA_M > 0 else 1)
        total, wide, low, corner = multiply_tile(
            x, weight, norm_weight, rows, more_rows, weight_rows, more_weight_rows,
            count, epsilon, 0, K, K, BLOCK_M, EXTRA_M, BLOCK_N, EXTRA_N, BLOCK_K, STAGES, SWAP,
        )  # fmt: skip
        if PDL and not EARLY:
            gdc_launch_dependents()
        finish(total, bias, y, rows, first_column, weight_rows, count, F, BIAS)
        if EXTRA_N > 0:
            finish(wide, bias, y, rows, first_column + BLOCK_N, more_weight_rows, count, F, BIAS)
        if EXTRA_M > 0:
            finish(low, bias, y, more_rows, first_column, weight_rows, count, F, BIAS)
            if EXTRA_N > 0:
                finish(corner, bias, y, more_rows, first_column + BLOCK_N, more_weight_rows, count, F, BIAS)


def constants(axes: Axes) -> dict[str, AxisValue]:
    flags = {"BIAS": axes["bias"]}
    return {"F": int(axes["rows"]) // 2, **flags, **product_constants(axes)}


TEMPLATE = Template(
    op="gated_linear",
    function=prefill_gated_linear,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("norm_weight", "operand", "dtype", when="norm"),
        Parameter("weight", "operand", "dtype"),
        Parameter("bias", "operand", "dtype", when="bias"),
        Parameter("y", "operand", "dtype"),
        Parameter("length", "field", "int32"),
        Parameter("epsilon", "attribute", "float32"),
    ),
    axes=PRODUCT_AXES | {"norm": OneOf((False, True)), "bias": OneOf((False, True))},
    constants=constants,
    grid=lambda letters, axes: (
        blocks(letters["M"], tile_rows(axes)),
        blocks(letters["F"], tile_columns(axes) // 2),
        1,
    ),
)
