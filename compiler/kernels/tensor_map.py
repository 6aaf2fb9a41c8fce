"""Map: each element of the result from one of each operand, by an expression and even distances.

With its strides an operand may be broadcast, transposed or cut into pieces on the way. Places after those of the
operands are numbers (int32) that the expression takes as further operands.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import (
    ABSENT,
    TRITON_TYPES,
    Axes,
    AxisValue,
    OneOf,
    Parameter,
    Template,
    Text,
    Whole,
)
from hjgc.compiler.kernels.formula import formula, refuse_formula
from hjgc.compiler.kernels.places import (
    BLOCKS,
    MOST_SIZES,
    SIZES,
    block_offset,
    coordinates,
    cut,
    fetch,
    refuse_places,
    refuse_words,
    total,
)
from hjgc.compiler.kernels.tiles_of_functions import MOST_OPERANDS


@triton.jit
def tensor_map(
    x0, x1, x2, x3, x4, x5, x6, x7, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    EXPRESSION: tl.constexpr,
    TYPES: tl.constexpr,
    TILE: tl.constexpr,
    PLACES: tl.constexpr,
    RESULT: tl.constexpr,
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
    values = fetch((x0, x1, x2, x3, x4, x5, x6, x7), TILE, PLACES, at, inside, sizes)
    result = formula(EXPRESSION, TYPES, values)
    tl.store(y0 + block_offset(RESULT, 0, at, BLOCK_M, BLOCK_N, sizes), result, mask=inside[1] & inside[2])


def types(axes: Axes) -> str:
    """Those of the expression's operands."""
    given = [str(axes[f"x{i}"]) for i in range(MOST_OPERANDS) if axes[f"x{i}"] != ABSENT]
    return ",".join(given + ["int32"] * (len(str(axes["places"]).split()) - len(given)))


def constants(axes: Axes) -> dict[str, AxisValue]:
    named = {
        name.upper(): axes[name] for name in ("expression", "tile", "places", "result", "block_m", "block_n", "pdl")
    }
    return named | {"TYPES": types(axes)}


def refuse(axes: Axes) -> str | None:
    tile, places, result = (str(axes[name]) for name in ("tile", "places", "result"))
    given = [axes[f"x{i}"] != ABSENT for i in range(MOST_OPERANDS)]
    if given != sorted(given, reverse=True) or sum(given) > len(places.split()) or len(result.split()) != 1:
        return "expected operands from x0 on, each with a place, and one for the result"
    return (
        refuse_words(int(axes["sizes"]), tile, places, result)
        or refuse_places(tile, f"{places} {result}")
        or refuse_formula(str(axes["expression"]), types(axes).split(","))
    )


TEMPLATE = Template(
    op="elementwise",
    function=tensor_map,
    parameters=(
        *(Parameter(f"x{i}", "operand", f"x{i}", when=f"x{i}") for i in range(MOST_OPERANDS)),
        Parameter("y0", "operand", "y0"),
        *SIZES,
    ),
    axes={
        "expression": Text(),
        "tile": Text(),
        "places": Text(),
        "result": Text(),
        **{f"x{i}": OneOf((*TRITON_TYPES, ABSENT)) for i in range(MOST_OPERANDS)},
        "y0": OneOf(tuple(TRITON_TYPES)),
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
