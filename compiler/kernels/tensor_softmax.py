"""Softmax: each program makes a few rows add up to one, or the logarithm of that.

The columns of the tile are the axis. A row that a program can hold is read once; a longer one twice, the first time
for its running maximum and sum (Milakov and Gimelshein, 2018).
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
from hjgc.compiler.kernels.reductions import FLOATING, ROW_BLOCKS, end, larger, widened


@triton.jit
def normal(values, peak, total, LOG: tl.constexpr):
    return values - peak - tl.log(total) if LOG else tl.exp(values - peak) / total


@triton.jit
def tensor_softmax(
    x0, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    LOG: tl.constexpr,
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
    none = end(x0, False)
    if ONCE:
        inside = (row < rows) & (lanes < columns)
        places = block_offset(PLACES, 0, coordinates(TILE, (0, row, lanes), sizes), BLOCK_M, BLOCK_N, sizes)
        values = tl.where(inside, widened(tl.load(x0 + places, mask=inside, other=0)), none)
        peak = tl.reduce(values, 1, larger, keep_dims=True)
        sums = tl.sum(tl.exp(values - peak), 1, keep_dims=True)
        tl.store(y0 + places, normal(values, peak, sums, LOG).to(y0.dtype.element_ty), mask=inside)
    else:
        peak = tl.full((BLOCK_M, 1), 0, none.dtype) + none
        sums = tl.full((BLOCK_M, 1), 0, none.dtype)
        for first in range(0, columns, BLOCK_N):
            column = first + lanes
            inside = (row < rows) & (column < columns)
            places = block_offset(PLACES, 0, coordinates(TILE, (0, row, column), sizes), BLOCK_M, BLOCK_N, sizes)
            values = tl.where(inside, widened(tl.load(x0 + places, mask=inside, other=0)), none)
            higher = larger(peak, tl.reduce(values, 1, larger, keep_dims=True))
            # Where all so far is -inf, differences to it would be no numbers.
            level = tl.where(higher == none, 0.0, higher)
            sums = sums * tl.exp(peak - level) + tl.sum(tl.exp(values - level), 1, keep_dims=True)
            peak = higher
        for first in range(0, columns, BLOCK_N):
            column = first + lanes
            inside = (row < rows) & (column < columns)
            places = block_offset(PLACES, 0, coordinates(TILE, (0, row, column), sizes), BLOCK_M, BLOCK_N, sizes)
            values = widened(tl.load(x0 + places, mask=inside, other=0))
            tl.store(y0 + places, normal(values, peak, sums, LOG).to(y0.dtype.element_ty), mask=inside)


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {name.upper(): axes[name] for name in ("log", "tile", "places", "once", "block_m", "block_n", "pdl")}


def refuse(axes: Axes) -> str | None:
    tile, places = str(axes["tile"]), str(axes["places"])
    if len(places.split()) != 1:
        return "expected one place"
    return refuse_words(int(axes["sizes"]), tile, places) or refuse_places(tile, places)


TEMPLATE = Template(
    op="softmax",
    function=tensor_softmax,
    parameters=(Parameter("x0", "operand", "dtype"), Parameter("y0", "operand", "dtype"), *SIZES),
    axes={
        "log": OneOf((False, True)),
        "tile": Text(),
        "places": Text(),
        "once": OneOf((False, True)),
        "dtype": FLOATING,
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
