"""RMSNorm: each program normalises one row, the mean in float32."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole


@triton.jit
def rms_norm(
    x: tl.tensor,
    weight: tl.tensor,
    y: tl.tensor,
    length: tl.tensor,
    epsilon: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    if PDL:
        gdc_launch_dependents()
    # The weight never changes, so it may be on its way before the predecessor has finished. The parameter block may be
    # what the predecessor wrote: even the decision to leave early comes after the wait.
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    if row < tl.load(length):
        values = tl.load(x + row * COLUMNS + columns, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(values * values, 0) / COLUMNS
        normal = values * tl.rsqrt(mean + epsilon) * scale
        tl.store(y + row * COLUMNS + columns, normal, mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    columns = int(axes["columns"])
    return {"COLUMNS": columns, "BLOCK": triton.next_power_of_2(columns), "PDL": axes["pdl"]}


TEMPLATE = Template(
    op="rms_norm",
    function=rms_norm,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("weight", "operand", "weight_dtype"),
        Parameter("y", "operand", "dtype"),
        Parameter("length", "field", "int32"),
        Parameter("epsilon", "attribute", "float32"),
    ),
    axes={
        "columns": Whole(1, 65536),
        "dtype": OneOf(DTYPES),
        "weight_dtype": OneOf(DTYPES),
        "warps": OneOf((1, 2, 4, 8, 16)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["M"], 1, 1),
)
