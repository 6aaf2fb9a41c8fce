"""Concatenate: rows of up to eight operands behind each other; what is no operand's is loaded by nobody."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Text, Whole
from hjgc.compiler.kernels.places import BLOCKS, MOST_SIZES, MOVED, SIZES, cut, refuse_words, total, word
from hjgc.compiler.kernels.tiles_of_functions import MOST_OPERANDS


@triton.jit
def tensor_concat(
    x0, x1, x2, x3, x4, x5, x6, x7, y0, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    COUNT: tl.constexpr,
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
    operands = (x0, x1, x2, x3, x4, x5, x6, x7)
    values = tl.zeros((BLOCK_M, BLOCK_N), y0.dtype.element_ty)
    for i in tl.static_range(COUNT):  # pyright: ignore[reportGeneralTypeIssues]
        inner = column - word(PARTS, 2 * i, sizes)
        width = word(PARTS, 2 * i + 1, sizes)
        mine = inside[1] & ((inner >= 0) & (inner < width))
        values = tl.where(mine, tl.load(operands[i] + (row * width + inner), mask=mine, other=0), values)
    tl.store(y0 + (row * columns + column), values, mask=inside[1] & inside[2])


def constants(axes: Axes) -> dict[str, AxisValue]:
    named = {name.upper(): axes[name] for name in ("tile", "parts", "block_m", "block_n", "pdl")}
    return named | {"COUNT": axes["operands"]}


def refuse(axes: Axes) -> str | None:
    tile, parts = str(axes["tile"]), str(axes["parts"])
    if len(parts.split()) != axes["operands"] or any(part.count(",") != 1 for part in parts.split()):
        return "expected a start and a width for each operand"
    return refuse_words(int(axes["sizes"]), tile, parts)


TEMPLATE = Template(
    op="concat",
    function=tensor_concat,
    parameters=(
        *(Parameter(f"x{i}", "operand", "dtype", when="operands", place=i) for i in range(MOST_OPERANDS)),
        Parameter("y0", "operand", "dtype"),
        *SIZES,
    ),
    axes={
        "tile": Text(),
        "parts": Text(),
        "operands": Whole(1, MOST_OPERANDS),
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
