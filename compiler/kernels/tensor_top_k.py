"""Top k: each program takes the largest numbers of a few rows, one after the other, out of what it holds.

The columns of the tile are the axis. Of equal ones those in front come first. What is no number is larger than all
others, as in torch.
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
from hjgc.compiler.kernels.reductions import NEVER, NUMBERS, ROW_BLOCKS, largest, largest_number, upended, widened


@triton.jit
def tensor_top_k(
    x0, y0, y1, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    COUNT: tl.constexpr,
    LARGEST: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
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
    inside = (row < rows) & (lanes < columns)
    places = block_offset(PLACES, 0, coordinates(TILE, (0, row, lanes), sizes), BLOCK_M, BLOCK_N, sizes)
    values = widened(tl.load(x0 + places, mask=inside, other=0))
    if not LARGEST:
        values = upended(values)
    left = tl.where(inside, lanes, NEVER)
    for i in range(COUNT):
        if LARGEST:
            best, where = tl.reduce((values, left), 1, largest, keep_dims=True)
        else:
            best, where = tl.reduce((values, left), 1, largest_number, keep_dims=True)
            best = upended(best)
        there = (row < rows) & (where != NEVER)
        to = block_offset(PLACES, 1, coordinates(TILE, (0, row, i), sizes), BLOCK_M, 1, sizes)
        tl.store(y0 + to, best.to(y0.dtype.element_ty), mask=there)
        tl.store(y1 + to, where.to(tl.int64), mask=there)
        left = tl.where(lanes == where, NEVER, left)


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {name.upper(): axes[name] for name in ("count", "largest", "tile", "places", "block_m", "block_n", "pdl")}


def refuse(axes: Axes) -> str | None:
    tile, places = str(axes["tile"]), str(axes["places"])
    if len(places.split()) != 2:
        return "expected places of the operand and the results"
    return refuse_words(int(axes["sizes"]), tile, places) or refuse_places(tile, places)


TEMPLATE = Template(
    op="top_k",
    function=tensor_top_k,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("y0", "operand", "dtype"),
        Parameter("y1", "operand", "int64"),
        *SIZES,
    ),
    axes={
        "count": Whole(1, 64),
        "largest": OneOf((False, True)),
        "tile": Text(),
        "places": Text(),
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
