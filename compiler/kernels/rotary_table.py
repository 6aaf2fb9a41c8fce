"""Rotary table: each program writes the cosines and sines of one position."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, OneOf, Parameter, Template, Whole


@triton.jit
def rotary_table(
    inverse_frequencies, cos, sin, start, length, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    if PDL:
        gdc_launch_dependents()
    frequencies = tl.load(inverse_frequencies + columns, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    if row < tl.load(length):
        angles = (tl.load(start) + row).to(tl.float32) * frequencies
        places = row.to(tl.int64) * COLUMNS + columns
        tl.store(cos + places, tl.cos(angles), mask=inside)
        tl.store(sin + places, tl.sin(angles), mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    columns = int(axes["columns"])
    return {"COLUMNS": columns, "BLOCK": triton.next_power_of_2(columns), "PDL": axes["pdl"]}


TEMPLATE = Template(
    op="rotary_table",
    function=rotary_table,
    parameters=(
        Parameter("inverse_frequencies", "operand", "float32"),
        Parameter("cos", "operand", "float32"),
        Parameter("sin", "operand", "float32"),
        Parameter("start", "field", "int32"),
        Parameter("length", "field", "int32"),
    ),
    axes={
        "columns": Whole(1, 1024),
        "warps": OneOf((1, 2, 4)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["M"], 1, 1),
)
