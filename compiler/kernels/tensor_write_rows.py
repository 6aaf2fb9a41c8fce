"""Write rows: each element of the result is new, or as it was, by where its sequence is written.

Rows outside of the axis, which the op refuses, are written nowhere: a kernel cannot raise.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Text, Whole
from hjgc.compiler.kernels.places import (
    BLOCKS,
    MOST_SIZES,
    MOVED,
    SIZES,
    block_offset,
    coordinates,
    cut,
    refuse_places,
    refuse_words,
    total,
    word,
)


@triton.jit
def tensor_write_rows(
    x0, x1, x2, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    CIRCULAR: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
    WRITTEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sizes = (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11)
    batches, rows, columns = total(TILE, 0, sizes), total(TILE, 1, sizes), total(TILE, 2, sizes)
    numbers, inside = cut(batches, rows, columns, BLOCK_M, BLOCK_N)
    at = coordinates(TILE, numbers, sizes)
    whole = inside[1] & inside[2]
    own = block_offset(PLACES, 3, at, BLOCK_M, BLOCK_N, sizes)
    number = block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes)
    if x2 is not None:
        first = tl.load(x2 + block_offset(PLACES, 2, at, BLOCK_M, BLOCK_N, sizes), mask=whole, other=0)
        number = (number - first).to(tl.int32)
    if CIRCULAR:
        number = tl.where(number < 0, number + word(WRITTEN, 0, sizes), number)
    new = whole & ((number >= 0) & (number < word(WRITTEN, 1, sizes)))
    among = block_offset(PLACES, 1, at, BLOCK_M, BLOCK_N, sizes) + number * word(WRITTEN, 2, sizes)
    values = tl.where(new, tl.load(x1 + among, mask=new, other=0), tl.load(x0 + own, mask=whole & ~new, other=0))
    tl.store(y0 + own, values, mask=whole)


def constants(axes: Axes) -> dict[str, AxisValue]:
    names = ("circular", "tile", "places", "written", "block_m", "block_n", "pdl")
    return {name.upper(): axes[name] for name in names}


def refuse(axes: Axes) -> str | None:
    tile, places, written = (str(axes[name]) for name in ("tile", "places", "written"))
    if len(places.split()) != 4 or written.count(",") != 2:
        return "expected places of rows, new elements, sequences and the result, and two counts and a step"
    return refuse_words(int(axes["sizes"]), tile, places, written) or refuse_places(tile, places)


TEMPLATE = Template(
    op="write_rows",
    function=tensor_write_rows,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "dtype"),
        Parameter("x2", "operand", "int64", when="from"),
        Parameter("y0", "operand", "dtype"),
        *SIZES,
    ),
    axes={
        "circular": OneOf((False, True)),
        "from": OneOf((False, True)),
        "tile": Text(),
        "places": Text(),
        "written": Text(),
        "dtype": MOVED,
        "sizes": Whole(0, MOST_SIZES),
        "block_m": BLOCKS,
        "block_n": BLOCKS,
        "warps": OneOf((1, 2, 4, 8)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    refuse=refuse,
    grid=lambda letters, axes: (letters["programs"], 1, 1),
)
