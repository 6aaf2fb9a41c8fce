"""Linear for one row: each program computes a few of its numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole, blocks
from hjgc.compiler.kernels.products import PRODUCT_AXES, product, product_constants


@triton.jit
def decode_linear(
    x, weight, bias, residual, y, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    result = product(x, weight, first, N, K, ROWS, BLOCK, UNROLL, AHEAD, PDL)
    rows = first + tl.arange(0, ROWS)
    inside = rows < N
    if bias is not None:
        result += tl.load(bias + rows, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        result += tl.load(residual + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + rows, result, mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    columns = int(axes["columns"])
    return {"N": axes["outputs"], "K": columns, **product_constants(axes, columns)}


TEMPLATE = Template(
    op="linear",
    function=decode_linear,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("weight", "operand", "weight_dtype"),
        Parameter("bias", "operand", "weight_dtype", when="bias"),
        Parameter("residual", "operand", "dtype", when="residual"),
        Parameter("y", "operand", "dtype"),
    ),
    axes={
        "outputs": Whole(1, 1 << 24),
        "columns": Whole(1, 1 << 20),
        "bias": OneOf((False, True)),
        "residual": OneOf((False, True)),
        "dtype": OneOf(DTYPES),
        "weight_dtype": OneOf(DTYPES),
        **PRODUCT_AXES,
    },
    constants=constants,
    grid=lambda letters, axes: (blocks(letters["N"], int(axes["rows"])), 1, 1),
)
