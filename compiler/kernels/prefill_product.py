"""How do many rows meet a weight matrix: one tile of x @ weight.T on the tensor cores, summed in float32?

Every template for prompts is this loop with an epilogue of its own. The weight's rows are named by an index, so a tile
may hold rows that lie apart (a gate beside its up, the two halves of a head) as neighbouring columns of the result.
The sum runs over K in order, so a row's bits depend on the tile's shape alone, never on the grid.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Whole

PRODUCT_AXES = {
    "dtype": OneOf(("float16", "bfloat16")),
    "rows": Whole(1, 1 << 20),
    "columns": Whole(1, 1 << 20),
    "block_m": OneOf((16, 32, 64, 128, 256)),
    "extra_m": OneOf((0, 16, 32, 64, 128)),
    "block_n": OneOf((16, 32, 64, 128, 256)),
    "extra_n": OneOf((0, 16, 32, 64, 128)),
    "block_k": OneOf((32, 64, 128, 256)),
    "stages": Whole(1, 8),
    "swap": OneOf((False, True)),
    "early": OneOf((False, True)),
    "warps": OneOf((4, 8)),
    "pdl": OneOf((False, True)),
}
"""The axes of every template with this loop: the weight is [rows, columns]; a tile is block_m + extra_m rows of x by
block_n + extra_n rows of the weight; `early` lets the successor start with this kernel, not after its loop: measured,
that pays never, since what starts early takes the place of what should run, but for loops much shorter than these."""


def tile_rows(axes: Axes) -> int:
    return int(axes["block_m"]) + int(axes["extra_m"])


def tile_columns(axes: Axes) -> int:
    return int(axes["block_n"]) + int(axes["extra_n"])


def product_constants(axes: Axes) -> dict[str, AxisValue]:
    """The constants of this loop, by the names that every kernel gives them."""
    return {
        "K": axes["columns"],
        "BLOCK_M": axes["block_m"],
        "EXTRA_M": axes["extra_m"],
        "BLOCK_N": axes["block_n"],
        "EXTRA_N": axes["extra_n"],
        "BLOCK_K": axes["block_k"],
        "STAGES": axes["stages"],
        "SWAP": axes["swap"],
        "EARLY": axes["early"],
        "PDL": axes["pdl"],
    }


@triton.jit
def inverse_rms(x, rows, count, epsilon, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """1 / sqrt(mean(x^2) + epsilon) of those of these rows of x [*, K] that are under `count`: [BLOCK_M] float32."""
    columns = tl.arange(0, BLOCK_K)
    squares = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for k in range(0, K, BLOCK_K):
        inside = (rows < count)[:, None] & (k + columns < K)[None, :]
        values = tl.load(x + rows[:, None].to(tl.int64) * K + (k + columns)[None, :], mask=inside, other=0.0)
        squares += values.to(tl.float32) * values.to(tl.float32)
    return tl.rsqrt(tl.sum(squares, 1) / K + epsilon)


@triton.jit
def load_x(pointers, present, norm_weight, scale, k, columns, last, DTYPE: tl.constexpr, EVEN: tl.constexpr):
    """The columns from k on, zero from `last` on; where there is a `norm_weight`, normalised and rounded.

    A row that is not `present` is not read. Reading the last row in its place makes all programs ask for the same lines
    at once: measured on an H200, that made a prompt of 33 rows take 6.5 ms instead of 3.9."""
    inside = present if EVEN else present & (k + columns < last)[None, :]
    a = tl.load(pointers + k, mask=inside, other=0.0)
    if norm_weight is not None:
        gain = tl.load(norm_weight + k + columns, mask=k + columns < last, other=0.0).to(tl.float32)
        a = (a.to(tl.float32) * scale[:, None] * gain[None, :]).to(DTYPE)
    return a


@triton.jit
def load_weight(pointers, k, columns, last, EVEN: tl.constexpr):
    """The columns from k on, zero from `last` on. `EVEN`: none of them is."""
    if EVEN:
        return tl.load(pointers + k)
    return tl.load(pointers + k, mask=(k + columns < last)[None, :], other=0.0)


@triton.jit
def add_product(a, b, total, SWAP: tl.constexpr):
    """total + a @ b.T. `SWAP`: the weight is the left operand, so that few rows fill the matrix unit's narrow side."""
    return tl.dot(b, tl.trans(a), total) if SWAP else tl.dot(a, tl.trans(b), total)


@triton.jit
def empty_sum(M: tl.constexpr, N: tl.constexpr, SWAP: tl.constexpr):
    return tl.zeros((N, M) if SWAP else (M, N), tl.float32)


@triton.jit
def multiply_tile(
    x,
    weight,
    norm_weight,
    rows,
    more_rows,
    weight_rows,
    more_weight_rows,
    count,
    epsilon,
    first,
    last,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EXTRA_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXTRA_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SWAP: tl.constexpr,
):
    """x[rows] @ weight[weight_rows].T over columns `first` to `last`, in float32; zero for rows from `count` on.

    A tile has up to four pieces, because a piece is a power of two and a tile that fills the chip often is not: rows or
    more rows (none if EXTRA_M is 0) by weight rows or more. All four are returned; those not asked for mean nothing.
    Where there is a `norm_weight`, the rows of x are normalised on their way in."""
    EVEN: tl.constexpr = K % BLOCK_K == 0
    DTYPE: tl.constexpr = x.dtype.element_ty
    columns = tl.arange(0, BLOCK_K)
    left = x + rows[:, None].to(tl.int64) * K + columns[None, :]
    right = weight + weight_rows[:, None].to(tl.int64) * K + columns[None, :]
    present = (rows < count)[:, None]
    scale = epsilon
    more_scale = epsilon
    if norm_weight is not None:
        scale = inverse_rms(x, rows, count, epsilon, K, BLOCK_M, BLOCK_K)
    total = empty_sum(BLOCK_M, BLOCK_N, SWAP)
    wide, low, corner = total, total, total
    more_left, more_right, more_present = left, right, present
    if EXTRA_N > 0:
        more_right = weight + more_weight_rows[:, None].to(tl.int64) * K + columns[None, :]
        wide = empty_sum(BLOCK_M, EXTRA_N, SWAP)
    if EXTRA_M > 0:
        more_left = x + more_rows[:, None].to(tl.int64) * K + columns[None, :]
        more_present = (more_rows < count)[:, None]
        if norm_weight is not None:
            more_scale = inverse_rms(x, more_rows, count, epsilon, K, EXTRA_M, BLOCK_K)
        low = empty_sum(EXTRA_M, BLOCK_N, SWAP)
        if EXTRA_N > 0:
            corner = empty_sum(EXTRA_M, EXTRA_N, SWAP)
    for k in tl.range(first, last, BLOCK_K, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        a = load_x(left, present, norm_weight, scale, k, columns, last, DTYPE, EVEN)
        b = load_weight(right, k, columns, last, EVEN)
        total = add_product(a, b, total, SWAP)
        more_b = b
        if EXTRA_N > 0:
            more_b = load_weight(more_right, k, columns, last, EVEN)
            wide = add_product(a, more_b, wide, SWAP)
        if EXTRA_M > 0:
            more_a = load_x(more_left, more_present, norm_weight, more_scale, k, columns, last, DTYPE, EVEN)
            low = add_product(more_a, b, low, SWAP)
            if EXTRA_N > 0:
                corner = add_product(more_a, more_b, corner, SWAP)
    if SWAP:
        total, wide, low, corner = tl.trans(total), tl.trans(wide), tl.trans(low), tl.trans(corner)
    return total, wide, low, corner
