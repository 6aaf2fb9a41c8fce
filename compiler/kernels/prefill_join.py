"""Join: parts of a product summed in order, bias and residual added, and the sum normalised for the next product."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Whole


@triton.jit
def prefill_join(
    parts,
    bias,
    residual,
    norm_weight,
    y,
    normal,
    length,
    epsilon,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < COLUMNS
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if row < tl.load(length):
        total = tl.load(parts + row * COLUMNS + columns, mask=inside, other=0.0)
        for part in tl.static_range(1, SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
            total += tl.load(parts + (part * ROWS + row) * COLUMNS + columns, mask=inside, other=0.0)
        if BIAS:
            total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL:
            total += tl.load(residual + row * COLUMNS + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = total.to(y.dtype.element_ty)
        tl.store(y + row * COLUMNS + columns, rounded, mask=inside)
        if NORM:
            values = rounded.to(tl.float32)
            scale = tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
            mean = tl.sum(values * values, 0) / COLUMNS
            tl.store(normal + row * COLUMNS + columns, values * tl.rsqrt(mean + epsilon) * scale, mask=inside)


def constants(axes: Axes) -> dict[str, AxisValue]:
    columns = int(axes["columns"])
    return {
        "COLUMNS": columns,
        "ROWS": axes["row_capacity"],
        "SPLITS": axes["splits"],
        "BLOCK": triton.next_power_of_2(columns),
        "BIAS": axes["bias"],
        "RESIDUAL": axes["residual"],
        "NORM": axes["norm"],
        "PDL": axes["pdl"],
    }


TEMPLATE = Template(
    op="join",
    function=prefill_join,
    parameters=(
        Parameter("parts", "operand", "float32"),
        Parameter("bias", "operand", "dtype", when="bias"),
        Parameter("residual", "operand", "dtype", when="residual"),
        Parameter("norm_weight", "operand", "dtype", when="norm"),
        Parameter("y", "operand", "dtype"),
        Parameter("normal", "operand", "dtype", when="norm"),
        Parameter("length", "field", "int32"),
        Parameter("epsilon", "attribute", "float32"),
    ),
    axes={
        "dtype": OneOf(("float16", "bfloat16")),
        "columns": Whole(1, 65536),
        "splits": Whole(1, 16),
        "row_capacity": Whole(1, 1 << 16),
        "bias": OneOf((False, True)),
        "residual": OneOf((False, True)),
        "norm": OneOf((False, True)),
        "warps": OneOf((4, 8, 16)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["M"], 1, 1),
)
