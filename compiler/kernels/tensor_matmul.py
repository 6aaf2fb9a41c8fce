"""Matrix products of a function: a tile of x0 @ x1 on the tensor cores, summed in float32, and what an expression makes
of it; or a part of the sum, which `norm_map` adds to the others.

Each matrix may be transposed, and one for the whole batch. The sum runs over K in order, so that a row's bits depend on
the tile's shape alone, never on the grid.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.beside import BESIDE_AXES, PARAMETERS, beside_constants, load_beside, types_beside
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
from hjgc.compiler.kernels.products import call_pieces


@triton.jit
def call_weight(
    weight,
    column,
    first,
    N: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
):
    """Ask the L2 cache for the columns of a tile, in LANES pieces: no kernel writes a weight, so that nothing has to be
    waited for."""
    ITEM: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
    lanes = tl.arange(0, LANES)
    if TRANSPOSE:
        offsets = ((column + lanes).to(tl.int64) * K + first) * ITEM
        length = tl.minimum(SPAN, K - first) * ITEM
        sizes = tl.where((lanes < BLOCK_N) & (column + lanes < N), length, 0)
    else:
        offsets = ((first + lanes).to(tl.int64) * N + column) * ITEM
        length = tl.minimum(BLOCK_N, N - column) * ITEM
        sizes = tl.where((lanes < SPAN) & (first + lanes < K), length, 0)
    call_pieces(weight, offsets, sizes)


@triton.jit
def tensor_matmul(
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    y0,
    batches,
    rows,
    outputs,
    depth,
    N: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    TRANSPOSE_A: tl.constexpr,
    TRANSPOSE_B: tl.constexpr,
    BATCH_A: tl.constexpr,
    BATCH_B: tl.constexpr,
    PARTS: tl.constexpr,
    EXPRESSION: tl.constexpr,
    TYPES: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    P4: tl.constexpr,
    P5: tl.constexpr,
    P6: tl.constexpr,
    P7: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        if AHEAD > 0:
            column = tl.program_id(0) // tl.maximum(tl.cdiv(rows, BLOCK_M), 1) * BLOCK_N
            call_weight(x1, column, tl.program_id(2) * SPAN, N, K, SPAN, TRANSPOSE_B, BLOCK_N, AHEAD)
        gdc_wait()
    if N > 0:
        width: tl.constexpr = N
    else:
        width = outputs
    if K > 0:
        inner: tl.constexpr = K
    else:
        inner = depth
    batch = tl.program_id(1)
    tiles = tl.maximum(tl.cdiv(rows, BLOCK_M), 1)
    m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    if BATCH_A or BATCH_B:
        # No grid is empty, but a batch may be.
        rows = tl.where(batch < batches, rows, 0)
        last = tl.where(batch < batches, inner, 0)
    else:
        last = inner
    first = 0
    if PARTS > 1:
        first = tl.program_id(2) * SPAN
        last = tl.minimum(first + SPAN, inner)
    steps = tl.arange(0, BLOCK_K)
    left = x0 + (batch * (rows * inner) if BATCH_A else 0)
    right = x1 + (batch * (inner * width) if BATCH_B else 0)
    if TRANSPOSE_A:
        left += m[:, None] + steps[None, :] * rows
    else:
        left += m[:, None] * inner + steps[None, :]
    if TRANSPOSE_B:
        right += n[None, :] * inner + steps[:, None]
    else:
        right += n[None, :] + steps[:, None] * width
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(first, last, BLOCK_K, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        a_inside = (m < rows)[:, None]
        b_inside = (n < width)[None, :]
        if K == 0 or K % BLOCK_K != 0 or SPAN % BLOCK_K != 0:
            a_inside = a_inside & (k + steps < last)[None, :]
            b_inside = b_inside & (k + steps < last)[:, None]
        a = tl.load(left + (k * rows if TRANSPOSE_A else k), mask=a_inside, other=0.0)
        if N > 0 and N % BLOCK_N == 0 and K > 0 and K % BLOCK_K == 0 and SPAN % BLOCK_K == 0:
            b = tl.load(right + (k if TRANSPOSE_B else k * width))
        else:
            b = tl.load(right + (k if TRANSPOSE_B else k * width), mask=b_inside, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    inside = (m < rows)[:, None] & (n < width)[None, :]
    at = m[:, None] * width + n[None, :]
    if PARTS > 0:
        tl.store(y0 + tl.program_id(2) * (rows * width) + at, total, mask=inside)
    else:
        e2 = load_beside(x2, batch, m, n, rows, width, total, P2)
        e3 = load_beside(x3, batch, m, n, rows, width, total, P3)
        e4 = load_beside(x4, batch, m, n, rows, width, total, P4)
        e5 = load_beside(x5, batch, m, n, rows, width, total, P5)
        e6 = load_beside(x6, batch, m, n, rows, width, total, P6)
        e7 = load_beside(x7, batch, m, n, rows, width, total, P7)
        value = formula(EXPRESSION, TYPES, (total, total, e2, e3, e4, e5, e6, e7))
        value = tl.broadcast_to(value, (BLOCK_M, BLOCK_N)).to(y0.dtype.element_ty)
        tl.store(y0 + batch * (rows * width) + at, value, mask=inside)


def constants(axes: Axes) -> dict[str, AxisValue]:
    parts, depth, block = int(axes["parts"]), int(axes["depth"]), int(axes["block_k"])
    steps = -(-depth // block)
    span = -(-steps // max(1, parts)) * block
    return {
        "N": axes["outputs"],
        "K": depth,
        "SPAN": span,
        "TRANSPOSE_A": axes["transpose_a"],
        "TRANSPOSE_B": axes["transpose_b"],
        "BATCH_A": axes["batch_a"],
        "BATCH_B": axes["batch_b"],
        "PARTS": parts,
        "EXPRESSION": axes["expression"],
        **beside_constants(axes, types_beside(axes, str(axes["dtype"]))),
        "BLOCK_M": axes["block_m"],
        "BLOCK_N": axes["block_n"],
        "BLOCK_K": block,
        "STAGES": axes["stages"],
        "AHEAD": triton.next_power_of_2(int(axes["block_n"]) if axes["transpose_b"] else span) if axes["ahead"] else 0,
        "PDL": axes["pdl"],
    }


def refuse(axes: Axes) -> str | None:
    if int(axes["parts"]) and not int(axes["depth"]):
        return "expected a number of columns where the sum is cut into parts"
    whole = int(axes["outputs"]) % 8 == int(axes["depth"]) % 8 == 0 < int(axes["outputs"]) * int(axes["depth"])
    if axes["ahead"] and not (whole and axes["dtype"] != "float32" and not axes["batch_b"]):
        return "expected a weight of 16 bits whose sides are multiples of 8 where it is called ahead"
    return refuse_formula(str(axes["expression"]), types_beside(axes, str(axes["dtype"])))


TEMPLATE = Template(
    op="matmul_map",
    function=tensor_matmul,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "dtype"),
        *PARAMETERS,
        Parameter("y0", "operand", "result"),
        Parameter("batches", "size", "int32"),
        Parameter("rows", "size", "int32"),
        Parameter("outputs", "size", "int32"),
        Parameter("depth", "size", "int32"),
    ),
    axes={
        "dtype": OneOf(("float16", "bfloat16", "float32")),
        "result": OneOf((ABSENT, *TRITON_TYPES)),
        "outputs": Whole(0, 1 << 24),
        "depth": Whole(0, 1 << 24),
        "transpose_a": OneOf((False, True)),
        "transpose_b": OneOf((False, True)),
        "batch_a": OneOf((False, True)),
        "batch_b": OneOf((False, True)),
        "parts": Whole(0, 64),
        "expression": Text(),
        **BESIDE_AXES,
        "block_m": OneOf((16, 32, 64, 128)),
        "block_n": OneOf((16, 32, 64, 128, 256)),
        "block_k": OneOf((16, 32, 64, 128)),
        "stages": Whole(1, 8),
        "ahead": OneOf((False, True)),
        "warps": OneOf((1, 2, 4, 8)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["tiles"], letters["batch"], max(1, int(axes["parts"]))),
    refuse=refuse,
)
"""The weight is [depth, outputs]; 0 where the plan leaves a size open. With `parts` the result is float32, and there is
no expression. `ahead`: the weight never changes, and is called into the L2 cache before the predecessor has ended."""
