"""Rotate: each program turns pairs of numbers of a few rows by the angle of the row's position.

A position outside of the table, which the op refuses, is that of the first or the last angle: a kernel cannot raise.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import ABSENT, Axes, AxisValue, OneOf, Parameter, Template, Text, Whole
from hjgc.compiler.kernels.places import (
    BLOCKS,
    INDICES,
    MOST_SIZES,
    SIZES,
    block_offset,
    coordinates,
    cut,
    inside_axis,
    refuse_places,
    refuse_words,
    total,
    word,
)
from hjgc.compiler.kernels.reductions import FLOATING, widened


@triton.jit
def tensor_rotate(
    x0, x1, x2, x3, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
    ANGLES: tl.constexpr,
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
    row, column = numbers[1], numbers[2]
    whole = inside[1] & inside[2]
    turned = whole & (column < WIDTH)
    half: tl.constexpr = WIDTH // 2
    if INTERLEAVED:
        is_left, pair = column % 2 == 0, column // 2
        partner = tl.where(is_left, column + 1, column - 1)
    else:
        is_left, pair = column < half, column % half
        partner = tl.where(is_left, column + half, column - half)
    line = block_offset(PLACES, 0, coordinates(TILE, numbers, sizes), BLOCK_M, 1, sizes)
    if x3 is not None:
        line = inside_axis(tl.load(x3 + line, mask=inside[1], other=0), word(ANGLES, 0, sizes))
        turned = turned & (word(ANGLES, 0, sizes) + line * 0 > 0)
    cosine = widened(tl.load(x1 + (line * half + pair), mask=turned, other=0))
    sine = widened(tl.load(x2 + (line * half + pair), mask=turned, other=0))
    stored = tl.load(x0 + (row * columns + column), mask=whole, other=0)
    own, other = widened(stored), widened(tl.load(x0 + (row * columns + partner), mask=turned, other=0))
    result = cosine * own + tl.where(is_left, -sine, sine) * other
    result = tl.where(turned, result, own).to(y0.dtype.element_ty)
    tl.store(y0 + (row * columns + column), result, mask=whole)


def constants(axes: Axes) -> dict[str, AxisValue]:
    names = ("width", "interleaved", "tile", "places", "angles", "block_m", "block_n", "pdl")
    return {name.upper(): axes[name] for name in names}


def refuse(axes: Axes) -> str | None:
    tile, places, angles = (str(axes[name]) for name in ("tile", "places", "angles"))
    if len(places.split()) != 1 or not places.endswith(",0") or "," in angles or " " in angles:
        return "expected the place of a row's angles, which no column changes, and how many rows of angles there are"
    return refuse_words(int(axes["sizes"]), tile, places, angles) or refuse_places(tile, places)


TEMPLATE = Template(
    op="rotate",
    function=tensor_rotate,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "dtype"),
        Parameter("x2", "operand", "dtype"),
        Parameter("x3", "operand", "positions", when="positions"),
        Parameter("y0", "operand", "dtype"),
        *SIZES,
    ),
    axes={
        "width": Whole(2, 1 << 16),
        "interleaved": OneOf((False, True)),
        "tile": Text(),
        "places": Text(),
        "angles": Text(),
        "dtype": FLOATING,
        "positions": OneOf((*INDICES.values, ABSENT)),
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
