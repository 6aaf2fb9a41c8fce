"""Pad: the operand with a number, or a repetition of what is inside, around it."""

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
def source(place, count, MODE: tl.constexpr):
    """Which element lies at a place, of `count`, and whether there is one."""
    last = tl.maximum(count - 1, 0)
    some = count > 0
    if MODE == "constant":
        some = (place >= 0) & (place < count)
    elif MODE == "edge":
        place = tl.minimum(tl.maximum(place, 0), last)
    else:
        period = tl.maximum(count if MODE == "wrap" else 2 * last, 1)
        place = place % period
        place = tl.where(place < 0, place + period, place)
        if MODE == "reflect":
            place = tl.minimum(place, 2 * last - place)
    return place, some


@triton.jit
def tensor_pad(
    x0, x1, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    TILE: tl.constexpr,
    RESULT: tl.constexpr,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    MODE: tl.constexpr,
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
    found = whole
    places = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for i in tl.static_range(RANK):  # pyright: ignore[reportGeneralTypeIssues]
        place, some = source(at[i] - word(PARTS, 3 * i, sizes), word(PARTS, 3 * i + 1, sizes), MODE)
        places += place * word(PARTS, 3 * i + 2, sizes)
        found = tl.where(some, found, False)
    values = tl.load(x0 + places, mask=found, other=0)
    if x1 is not None:
        values = tl.where(found, values, tl.load(x1))
    tl.store(y0 + block_offset(RESULT, 0, at, BLOCK_M, BLOCK_N, sizes), values, mask=whole)


def constants(axes: Axes) -> dict[str, AxisValue]:
    named = {name.upper(): axes[name] for name in ("tile", "result", "parts", "mode", "block_m", "block_n", "pdl")}
    return named | {"RANK": len(str(axes["parts"]).split())}


def refuse(axes: Axes) -> str | None:
    tile, result, parts = (str(axes[name]) for name in ("tile", "result", "parts"))
    rank = tile.replace(" ", ",").count(",") + 1
    if len(result.split()) != 1 or len(parts.split()) != rank or any(part.count(",") != 2 for part in parts.split()):
        return "expected a place of the result, and before, count and stride for each axis of the tile"
    return refuse_words(int(axes["sizes"]), tile, result, parts) or refuse_places(tile, result)


TEMPLATE = Template(
    op="pad",
    function=tensor_pad,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "dtype", when="value"),
        Parameter("y0", "operand", "dtype"),
        *SIZES,
    ),
    axes={
        "tile": Text(),
        "result": Text(),
        "parts": Text(),
        "mode": OneOf(("constant", "edge", "reflect", "wrap")),
        "value": OneOf((False, True)),
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
