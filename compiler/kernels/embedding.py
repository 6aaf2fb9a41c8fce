"""Embedding: each program copies a part of the table's row for one token."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole, blocks


@triton.jit
def embedding(history, table, y, start, length, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if row < tl.load(length):
        token = tl.load(history + tl.load(start) + row).to(tl.int64)
        values = tl.load(table + token * COLUMNS + columns, mask=inside)
        tl.store(y + row.to(tl.int64) * COLUMNS + columns, values, mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    return {"COLUMNS": axes["columns"], "BLOCK": axes["block"], "PDL": axes["pdl"]}


TEMPLATE = Template(
    op="embedding",
    function=embedding,
    parameters=(
        Parameter("history", "operand", "int32"),
        Parameter("table", "operand", "weight_dtype"),
        Parameter("y", "operand", "dtype"),
        Parameter("start", "field", "int32"),
        Parameter("length", "field", "int32"),
    ),
    axes={
        "columns": Whole(1, 65536),
        "block": OneOf((128, 256, 512, 1024, 2048, 4096)),
        "dtype": OneOf(DTYPES),
        "weight_dtype": OneOf(DTYPES),
        "warps": OneOf((1, 2, 4, 8)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["M"], blocks(letters["H"], int(axes["block"])), 1),
)
