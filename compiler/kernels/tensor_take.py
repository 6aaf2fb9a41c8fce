"""Take: each element of the result from a place that whole numbers name along some axes of the operand.

Numbers under 0 count from behind. One outside of its axis, which the op refuses, names the first or the last element
here: a kernel cannot raise, and reads nothing that is not the operand's.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Text, Whole
from hjgc.compiler.kernels.places import (
    BLOCKS,
    INDICES,
    MOST_SIZES,
    MOVED,
    SIZES,
    block_offset,
    coordinates,
    cut,
    inside_axis,
    mask,
    offset,
    refuse_places,
    refuse_words,
    total,
    word,
)


@triton.jit
def tensor_take(
    x0, x1, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
    PICKED: tl.constexpr,
    DEPTH: tl.constexpr,
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
    place = block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes)
    named = x1 + offset(PLACES, 1, at, sizes)
    whole = inside[1] & inside[2]
    for i in tl.static_range(DEPTH):  # pyright: ignore[reportGeneralTypeIssues]
        count = word(PICKED, 2 * i, sizes)
        found = tl.load(named + i, mask=mask(TILE, PLACES, 1, inside), other=0)
        place += inside_axis(found, count) * word(PICKED, 2 * i + 1, sizes)
        whole = tl.where(count > 0, whole, False)
    values = tl.load(x0 + place, mask=whole)
    tl.store(y0 + block_offset(PLACES, 2, at, BLOCK_M, BLOCK_N, sizes), values, mask=whole)


def constants(axes: Axes) -> dict[str, AxisValue]:
    named = {name.upper(): axes[name] for name in ("tile", "places", "picked", "block_m", "block_n", "pdl")}
    return named | {"DEPTH": len(str(axes["picked"]).split())}


def refuse(axes: Axes) -> str | None:
    tile, places, picked = (str(axes[name]) for name in ("tile", "places", "picked"))
    if len(places.split()) != 3 or any(entry.count(",") != 1 for entry in picked.split()):
        return (
            "expected places of the operand, the numbers and the result, and a size and a stride for each axis picked"
        )
    return refuse_words(int(axes["sizes"]), tile, places, picked) or refuse_places(tile, places)


TEMPLATE = Template(
    op="gather",
    function=tensor_take,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "indices"),
        Parameter("y0", "operand", "dtype"),
        *SIZES,
    ),
    axes={
        "tile": Text(),
        "places": Text(),
        "picked": Text(),
        "dtype": MOVED,
        "indices": INDICES,
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
