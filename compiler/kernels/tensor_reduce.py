"""Reduce: each program makes one number of each of a few rows, in an order that the axes alone decide.

The rows of the tile are what is kept, its columns what is reduced: any axes of the operand.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Text, Whole
from hjgc.compiler.kernels.places import (
    MOST_SIZES,
    SIZES,
    block_offset,
    coordinates,
    refuse_places,
    refuse_words,
    total,
)
from hjgc.compiler.kernels.reductions import NUMBERS, ROW_BLOCKS, add, end, larger, multiply, smaller, widened

KINDS = ("sum", "mean", "max", "min", "prod", "sum_square", "l1", "l2", "log_sum", "log_sum_exp")


@triton.jit
def nothing(x, KIND: tl.constexpr):
    """What a kind makes of no number."""
    zero = end(x, True) * 0 if not x.dtype.element_ty.is_floating() else tl.exp(end(x, False))
    if KIND == "max" or KIND == "log_sum_exp":
        zero = end(x, False)
    elif KIND == "min":
        zero = end(x, True)
    elif KIND == "prod":
        zero += 1
    return zero


@triton.jit
def term(values, KIND: tl.constexpr):
    if KIND == "sum_square" or KIND == "l2":
        values = values * values
    elif KIND == "l1":
        values = tl.abs(values)
    return values


@triton.jit
def combined(a, b, KIND: tl.constexpr):
    if KIND == "max" or KIND == "log_sum_exp":
        a = larger(a, b)
    elif KIND == "min":
        a = smaller(a, b)
    elif KIND == "prod":
        a = a * b
    else:
        a = a + b
    return a


@triton.jit
def across(values, KIND: tl.constexpr):
    """One number of each row."""
    if KIND == "max" or KIND == "log_sum_exp":
        values = tl.reduce(values, 1, larger, keep_dims=True)
    elif KIND == "min":
        values = tl.reduce(values, 1, smaller, keep_dims=True)
    elif KIND == "prod":
        values = tl.reduce(values, 1, multiply, keep_dims=True)
    else:
        values = tl.reduce(values, 1, add, keep_dims=True)
    return values


@triton.jit
def finished(result, count, KIND: tl.constexpr):
    if KIND == "mean":
        result = result / tl.maximum(count, 1).to(result.dtype)
    elif KIND == "l2":
        result = tl.sqrt(result)
    elif KIND == "log_sum":
        result = tl.log(result)
    return result


@triton.jit
def tensor_reduce(
    x0, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    KIND: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sizes = (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11)
    rows, columns = total(TILE, 1, sizes), total(TILE, 2, sizes)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    lanes = tl.arange(0, BLOCK_N)[None, :]
    empty = nothing(x0, KIND)
    partial = tl.full((BLOCK_M, BLOCK_N), 0, empty.dtype) + empty
    for first in range(0, BLOCK_N if ONCE else columns, BLOCK_N):
        column = first + lanes
        inside = (row < rows) & (column < columns)
        at = coordinates(TILE, (0, row, column), sizes)
        values = widened(tl.load(x0 + block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes), mask=inside, other=0))
        partial = combined(partial, tl.where(inside, term(values, KIND), empty), KIND)
    result = across(partial, KIND)
    if KIND == "log_sum_exp":
        # What is infinite stays so: less itself it would be no number.
        peak = tl.where(tl.abs(result) == float("inf"), 0.0, result)
        sums = tl.full((BLOCK_M, BLOCK_N), 0, empty.dtype)
        for first in range(0, BLOCK_N if ONCE else columns, BLOCK_N):
            column = first + lanes
            inside = (row < rows) & (column < columns)
            at = coordinates(TILE, (0, row, column), sizes)
            values = widened(tl.load(x0 + block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes), mask=inside, other=0))
            sums += tl.where(inside, tl.exp(values - peak), 0.0)
        result = tl.log(tl.reduce(sums, 1, add, keep_dims=True)) + peak
    tl.store(y0 + row, finished(result, columns, KIND).to(y0.dtype.element_ty), mask=row < rows)


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {name.upper(): axes[name] for name in ("kind", "tile", "places", "once", "block_m", "block_n", "pdl")}


def refuse(axes: Axes) -> str | None:
    tile, places = str(axes["tile"]), str(axes["places"])
    if len(places.split()) != 1:
        return "expected one place"
    return refuse_words(int(axes["sizes"]), tile, places) or refuse_places(tile, places)


TEMPLATE = Template(
    op="reduce",
    function=tensor_reduce,
    parameters=(Parameter("x0", "operand", "dtype"), Parameter("y0", "operand", "dtype"), *SIZES),
    axes={
        "kind": OneOf(KINDS),
        "tile": Text(),
        "places": Text(),
        "once": OneOf((False, True)),
        "dtype": OneOf((*NUMBERS.values, "bool")),
        "sizes": Whole(0, MOST_SIZES),
        "block_m": ROW_BLOCKS,
        "block_n": ROW_BLOCKS,
        "warps": OneOf((1, 2, 4, 8, 16)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    refuse=refuse,
    grid=lambda letters, axes: (letters["programs"], 1, 1),
)
