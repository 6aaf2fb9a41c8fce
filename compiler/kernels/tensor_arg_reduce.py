"""Arg reduce: each program finds where the largest, or smallest, number of each of a few rows lies.

The rows of the tile are what is kept, its columns the axis. What is no number is found before all others, as in torch.
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
from hjgc.compiler.kernels.reductions import NEVER, NUMBERS, ROW_BLOCKS, end, largest, upended, widened


@triton.jit
def tensor_arg_reduce(
    x0, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    KIND: tl.constexpr,
    LAST: tl.constexpr,
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
    worst = end(x0, False)
    best = tl.full((BLOCK_M, BLOCK_N), 0, worst.dtype) + worst
    where = tl.full((BLOCK_M, BLOCK_N), NEVER, tl.int32)
    for first in range(0, BLOCK_N if ONCE else columns, BLOCK_N):
        column = first + lanes
        inside = (row < rows) & (column < columns)
        at = coordinates(TILE, (0, row, column), sizes)
        values = widened(tl.load(x0 + block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes), mask=inside, other=0))
        if KIND == "min":
            values = upended(values)
        order = columns - 1 - column if LAST else column
        best, where = largest(best, where, values, tl.where(inside, order, NEVER))
    best, where = tl.reduce((best, where), 1, largest, keep_dims=True)
    found = columns - 1 - where if LAST else where
    tl.store(y0 + row, found.to(tl.int64), mask=row < rows)


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {
        name.upper(): axes[name] for name in ("kind", "last", "tile", "places", "once", "block_m", "block_n", "pdl")
    }


def refuse(axes: Axes) -> str | None:
    tile, places = str(axes["tile"]), str(axes["places"])
    if len(places.split()) != 1:
        return "expected one place"
    return refuse_words(int(axes["sizes"]), tile, places) or refuse_places(tile, places)


TEMPLATE = Template(
    op="arg_reduce",
    function=tensor_arg_reduce,
    parameters=(Parameter("x0", "operand", "dtype"), Parameter("y0", "operand", "int64"), *SIZES),
    axes={
        "kind": OneOf(("max", "min")),
        "last": OneOf((False, True)),
        "tile": Text(),
        "places": Text(),
        "once": OneOf((False, True)),
        "dtype": NUMBERS,
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
