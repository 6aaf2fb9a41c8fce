"""Cumulate: each program goes along a few rows, block by block, with the sum or product so far.

The columns of the tile are the axis. A sum without the number itself is one of the numbers before it.
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
from hjgc.compiler.kernels.reductions import NUMBERS, ROW_BLOCKS, add, end, multiply, widened


@triton.jit
def tensor_cumulate(
    x0, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    KIND: tl.constexpr,
    EXCLUSIVE: tl.constexpr,
    REVERSE: tl.constexpr,
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
    carried = tl.full((BLOCK_M, 1), 1 if KIND == "prod" else 0, end(x0, False).dtype)
    for first in range(0, BLOCK_N if ONCE else columns, BLOCK_N):
        step = first + lanes
        inside = (row < rows) & (step < columns)
        source = step - 1 if EXCLUSIVE else step
        here = inside & (source >= 0)
        at = coordinates(TILE, (0, row, columns - 1 - source if REVERSE else source), sizes)
        values = widened(tl.load(x0 + block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes), mask=here, other=0))
        at = coordinates(TILE, (0, row, columns - 1 - step if REVERSE else step), sizes)
        places = block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes)
        if KIND == "prod":
            values = tl.where(here, values, 1)
            so_far = tl.associative_scan(values, 1, multiply) * carried
            carried *= tl.reduce(values, 1, multiply, keep_dims=True)
        else:
            values = tl.where(here, values, 0)
            so_far = tl.associative_scan(values, 1, add) + carried
            carried += tl.reduce(values, 1, add, keep_dims=True)
        tl.store(y0 + places, so_far.to(y0.dtype.element_ty), mask=inside)


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {
        name.upper(): axes[name]
        for name in ("kind", "exclusive", "reverse", "tile", "places", "once", "block_m", "block_n", "pdl")
    }


def refuse(axes: Axes) -> str | None:
    tile, places = str(axes["tile"]), str(axes["places"])
    if len(places.split()) != 1:
        return "expected one place"
    return refuse_words(int(axes["sizes"]), tile, places) or refuse_places(tile, places)


TEMPLATE = Template(
    op="cumulate",
    function=tensor_cumulate,
    parameters=(Parameter("x0", "operand", "dtype"), Parameter("y0", "operand", "dtype"), *SIZES),
    axes={
        "kind": OneOf(("sum", "prod")),
        "exclusive": OneOf((False, True)),
        "reverse": OneOf((False, True)),
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
