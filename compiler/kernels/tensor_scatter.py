"""Scatter: each element of the result looks through the whole numbers for those that name it, in order.

So several that meet are combined in one order, without atomics, and the last one stays where nothing is combined. It
costs a look at every number for each element: for few numbers. One outside of its axis, which the op refuses, names no
element here: a kernel cannot raise.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import TRITON_TYPES, Axes, AxisValue, OneOf, Parameter, Template, Text, Whole
from hjgc.compiler.kernels.places import (
    BLOCKS,
    INDICES,
    MOST_SIZES,
    SIZES,
    block_offset,
    coordinates,
    cut,
    mask,
    offset,
    refuse_places,
    refuse_words,
    total,
    word,
)
from hjgc.compiler.kernels.reductions import larger, smaller, widened


@triton.jit
def met(value, update, REDUCTION: tl.constexpr):
    """What becomes of an element and one that names it."""
    if REDUCTION == "add":
        value = value + update
    elif REDUCTION == "mul":
        value = value * update
    elif REDUCTION == "max":
        value = larger(value, update)
    elif REDUCTION == "min":
        value = smaller(value, update)
    else:
        value = update
    return value


@triton.jit
def tensor_scatter(
    x0, x1, x2, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    REDUCTION: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
    NAMED: tl.constexpr,
    PICKED: tl.constexpr,
    DEPTH: tl.constexpr,
    LIMITS: tl.constexpr,
    LIMITED: tl.constexpr,
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
    values = widened(tl.load(x0 + own, mask=whole, other=0))
    wanted = block_offset(PLACES, 0, at, BLOCK_M, BLOCK_N, sizes)
    named = offset(PLACES, 1, at, sizes)
    given = block_offset(PLACES, 2, at, BLOCK_M, BLOCK_N, sizes)
    seen = mask(TILE, PLACES, 1, inside)
    among = whole
    for i in tl.static_range(LIMITED):  # pyright: ignore[reportGeneralTypeIssues]
        among = tl.where(at[i] < word(LIMITS, i, sizes), among, False)
    if LIMITED > 0:
        seen = among
        named = block_offset(PLACES, 1, at, BLOCK_M, BLOCK_N, sizes)
    for number in range(word(NAMED, 0, sizes)):
        found = named * 0
        for i in tl.static_range(DEPTH):  # pyright: ignore[reportGeneralTypeIssues]
            count = word(PICKED, 2 * i, sizes)
            place = tl.load(x1 + (named + word(NAMED, 1, sizes) * number + i), mask=seen, other=-1)
            place = tl.where(place < 0, place + count, place)
            there = (place >= 0) & (place < count) & (found >= 0)
            found = tl.where(there, found + place.to(tl.int32) * word(PICKED, 2 * i + 1, sizes), -1)
        hit = among & (found == wanted)
        update = widened(tl.load(x2 + (given + word(NAMED, 2, sizes) * number), mask=hit, other=0))
        values = tl.where(hit, met(values, update, REDUCTION), values)
    tl.store(y0 + own, values.to(y0.dtype.element_ty), mask=whole)


def constants(axes: Axes) -> dict[str, AxisValue]:
    names = ("reduction", "tile", "places", "named", "picked", "limits", "block_m", "block_n", "pdl")
    limits = str(axes["limits"])
    lengths = {"DEPTH": len(str(axes["picked"]).split()), "LIMITED": limits.count(",") + 1 if limits else 0}
    return {name.upper(): axes[name] for name in names} | lengths


def refuse(axes: Axes) -> str | None:
    tile, places, named, picked, limits = (str(axes[name]) for name in ("tile", "places", "named", "picked", "limits"))
    rank = tile.replace(" ", ",").count(",") + 1
    if len(places.split()) != 4 or named.count(",") != 2:
        return "expected places of what is wanted, numbers, updates and the result, and a count and two steps"
    if any(part.count(",") != 1 for part in picked.split()) or (limits and limits.count(",") + 1 != rank):
        return "expected a size and a stride for each axis picked, and a limit for each axis of the tile or none"
    return refuse_words(int(axes["sizes"]), tile, places, named, picked, limits) or refuse_places(tile, places)


TEMPLATE = Template(
    op="scatter_elements",
    function=tensor_scatter,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "indices"),
        Parameter("x2", "operand", "dtype"),
        Parameter("y0", "operand", "dtype"),
        *SIZES,
    ),
    axes={
        "reduction": OneOf(("none", "add", "mul", "max", "min")),
        "tile": Text(),
        "places": Text(),
        "named": Text(),
        "picked": Text(),
        "limits": Text(),
        "dtype": OneOf(tuple(TRITON_TYPES)),
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
