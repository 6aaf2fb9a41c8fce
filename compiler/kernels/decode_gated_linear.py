"""Gated linear for one row: each program normalises the row again and computes a few of its gates and ups."""

# Triton's language, as its types see it: a loop is no iterator, a constant of the language no Python number.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole, blocks
from hjgc.compiler.kernels.products import PRODUCT_AXES, normalised_pair, product_constants


@triton.jit
def decode_gated_linear(
    x, norm_weight, weight, bias, y, epsilon, F: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    later = first + AHEAD * ROWS
    count = tl.minimum(F - first, ROWS).to(tl.int32)
    later_count = tl.minimum(F - later, ROWS).to(tl.int32)
    gate, up = normalised_pair(
        x, norm_weight, weight, first, count, later, later_count, F, epsilon, F % ROWS == 0, K, ROWS, BLOCK, UNROLL,
        AHEAD, PDL,
    )  # fmt: skip
    rows = first + tl.arange(0, ROWS)
    inside = rows < F
    if bias is not None:
        gate += tl.load(bias + rows, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(bias + F + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + rows, gate / (1.0 + tl.exp(-gate)) * up, mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    columns = int(axes["columns"])
    return {"F": axes["outputs"], "K": columns, **product_constants(axes, columns)}


TEMPLATE = Template(
    op="gated_linear",
    function=decode_gated_linear,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("norm_weight", "operand", "weight_dtype"),
        Parameter("weight", "operand", "weight_dtype"),
        Parameter("bias", "operand", "weight_dtype", when="bias"),
        Parameter("y", "operand", "dtype"),
        Parameter("epsilon", "attribute", "float32"),
    ),
    axes={
        "outputs": Whole(1, 1 << 24),
        "columns": Whole(1, 1 << 20),
        "bias": OneOf((False, True)),
        "dtype": OneOf(DTYPES),
        "weight_dtype": OneOf(DTYPES),
        **PRODUCT_AXES,
    },
    constants=constants,
    grid=lambda letters, axes: (blocks(letters["F"], int(axes["rows"])), 1, 1),
)
