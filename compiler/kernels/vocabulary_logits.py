"""Vocabulary logits: each program normalises the last row that counts and scores it against a few tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole, blocks
from hjgc.compiler.kernels.products import PRODUCT_AXES, normalised_last, product_constants


@triton.jit
def vocabulary_logits(
    x, norm_weight, weight, bias, logits, length, epsilon, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    result = normalised_last(x, length, norm_weight, weight, first, epsilon, N, K, ROWS, BLOCK, UNROLL, AHEAD, PDL)
    rows = first + tl.arange(0, ROWS)
    inside = rows < N
    if bias is not None:
        result += tl.load(bias + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(logits + rows, result, mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    columns = int(axes["columns"])
    return {"N": axes["outputs"], "K": columns, **product_constants(axes, columns)}


TEMPLATE = Template(
    op="vocabulary_logits",
    function=vocabulary_logits,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("norm_weight", "operand", "weight_dtype"),
        Parameter("weight", "operand", "weight_dtype"),
        Parameter("bias", "operand", "weight_dtype", when="bias"),
        Parameter("logits", "operand", "logits_dtype"),
        Parameter("length", "field", "int32", when="several"),
        Parameter("epsilon", "attribute", "float32"),
    ),
    axes={
        "outputs": Whole(1, 1 << 24),
        "columns": Whole(1, 1 << 20),
        "several": OneOf((False, True)),
        "bias": OneOf((False, True)),
        "dtype": OneOf(DTYPES),
        "weight_dtype": OneOf(DTYPES),
        "logits_dtype": OneOf(DTYPES),
        **PRODUCT_AXES,
    },
    constants=constants,
    grid=lambda letters, axes: (blocks(letters["V"], int(axes["rows"])), 1, 1),
)
