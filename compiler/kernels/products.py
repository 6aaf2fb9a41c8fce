"""How does one program multiply a vector with a few rows of a weight [N, K], as fast as memory delivers them?

The weight's first columns are loaded before the wait for the predecessor: a weight never changes. While the first
programs wait, they also call the rows of later programs into the L2 cache, so that the memory is never idle. Sums are
kept in float32, one a column of the block, and added up once at the end: the order depends on the axes alone.
"""

# Triton's language, as its types see it: a loop is no iterator, a constant of the language no Python number.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Whole

MOST_UNROLLED = 16
"""Loops of more blocks than this are not written out, whatever the axis `unroll` says."""

PRODUCT_AXES: dict[str, Whole | OneOf] = {
    "rows": OneOf((1, 2, 4, 8, 16, 32)),
    "block": OneOf((64, 128, 256, 512, 1024, 2048, 4096, 8192)),
    "unroll": OneOf((False, True)),
    "ahead": Whole(0, 1 << 16),
    "warps": OneOf((1, 2, 4, 8, 16)),
    "pdl": OneOf((False, True)),
}


def product_constants(axes: Axes, columns: int) -> dict[str, AxisValue]:
    """The constants that every product takes. The axis `ahead` counts programs; rows are called only where there is a
    wait, and where each starts at a multiple of 16 bytes."""
    ahead = int(axes["ahead"]) if axes["pdl"] is True and columns % 8 == 0 else 0
    block = int(axes["block"])
    unroll = axes["unroll"] is True and columns <= MOST_UNROLLED * block
    return {"ROWS": axes["rows"], "BLOCK": block, "UNROLL": unroll, "AHEAD": ahead, "PDL": axes["pdl"]}


@triton.jit
def load_rows(weight, rows, inside, columns, K: tl.constexpr, EVEN: tl.constexpr):
    """A tile [rows, columns] of `weight` [N, K], zero where a row is not `inside` or a column not under K."""
    places = weight + rows[:, None] * K + columns[None, :]
    if EVEN:
        tile = tl.load(places, eviction_policy="evict_first")
    else:
        mask = inside[:, None] & (columns < K)[None, :]
        tile = tl.load(places, mask=mask, other=0.0, eviction_policy="evict_first")
    return tile.to(tl.float32)


@triton.jit
def load_columns(vector, columns, K: tl.constexpr, EVEN: tl.constexpr):
    part = tl.load(vector + columns) if EVEN else tl.load(vector + columns, mask=columns < K, other=0.0)
    return part.to(tl.float32)


@triton.jit
def call_ahead(weight, first, count, K: tl.constexpr):
    """Ask the L2 cache for `count` (none if not over 0) rows of `weight` from row `first` on: they lie side by side."""
    PIECE: tl.constexpr = 16384
    ITEM: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
    # One thread asks for one piece: as many as threads, of which most have nothing to ask for.
    offsets = tl.arange(0, 128) * PIECE
    sizes = tl.minimum(tl.maximum(count * (K * ITEM) - offsets, 0), PIECE)
    call_pieces(weight + first * K, offsets, sizes)


@triton.jit
def call_pieces(start, offsets, sizes):
    """Ask the L2 cache for pieces of `sizes` bytes at `offsets` bytes from `start`, each a multiple of 16."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.gt.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, $2; }",
        "=r,l,r",
        [start.to(tl.int64) + offsets, sizes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def product(
    x, weight, first, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows `first` to `first + ROWS` of weight [N, K] times x [K]: [ROWS] float32, zero past row N."""
    rows = first + tl.arange(0, ROWS)
    inside = rows < N
    columns = tl.arange(0, BLOCK)
    EVEN_ROWS: tl.constexpr = N % ROWS == 0
    if PDL:
        gdc_launch_dependents()
    tile = load_rows(weight, rows, inside, columns, K, EVEN_ROWS and BLOCK <= K)
    if AHEAD > 0:  # noqa: SIM102
        if tl.program_id(0) < AHEAD:
            later = first + AHEAD * ROWS
            call_ahead(weight, later, tl.minimum(N - later, ROWS).to(tl.int32), K)
    if PDL:
        gdc_wait()
    sums = tile * load_columns(x, columns, K, BLOCK <= K)[None, :]
    if UNROLL:
        for k in tl.static_range(BLOCK, K, BLOCK):
            tile = load_rows(weight, rows, inside, k + columns, K, EVEN_ROWS and k + BLOCK <= K)
            sums += tile * load_columns(x, k + columns, K, k + BLOCK <= K)[None, :]
    else:
        for k in tl.range(BLOCK, K, BLOCK):
            tile = load_rows(weight, rows, inside, k + columns, K, EVEN_ROWS and K % BLOCK == 0)
            sums += tile * load_columns(x, k + columns, K, K % BLOCK == 0)[None, :]
    return tl.sum(sums, 1)


@triton.jit
def normalised_last(
    x, length, norm_weight, weight, first, epsilon, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same with x / sqrt(mean(x^2) + epsilon) * norm_weight in place of x; the mean is found on the way. Of x
    [M, K] the last of the `length` rows that count; the only one where `length` is None."""
    rows = first + tl.arange(0, ROWS)
    inside = rows < N
    columns = tl.arange(0, BLOCK)
    EVEN_ROWS: tl.constexpr = N % ROWS == 0
    if PDL:
        gdc_launch_dependents()
    tile = load_rows(weight, rows, inside, columns, K, EVEN_ROWS and BLOCK <= K)
    scale = load_columns(norm_weight, columns, K, BLOCK <= K)
    if AHEAD > 0:  # noqa: SIM102
        if tl.program_id(0) < AHEAD:
            later = first + AHEAD * ROWS
            call_ahead(weight, later, tl.minimum(N - later, ROWS).to(tl.int32), K)
    if PDL:
        gdc_wait()
    if length is not None:
        x += (tl.load(length) - 1).to(tl.int64) * K
    values = load_columns(x, columns, K, BLOCK <= K)
    squares = values * values
    sums = tile * (values * scale)[None, :]
    if UNROLL:
        for k in tl.static_range(BLOCK, K, BLOCK):
            tile = load_rows(weight, rows, inside, k + columns, K, EVEN_ROWS and k + BLOCK <= K)
            scale = load_columns(norm_weight, k + columns, K, k + BLOCK <= K)
            values = load_columns(x, k + columns, K, k + BLOCK <= K)
            squares += values * values
            sums += tile * (values * scale)[None, :]
    else:
        for k in tl.range(BLOCK, K, BLOCK):
            tile = load_rows(weight, rows, inside, k + columns, K, EVEN_ROWS and K % BLOCK == 0)
            scale = load_columns(norm_weight, k + columns, K, K % BLOCK == 0)
            values = load_columns(x, k + columns, K, K % BLOCK == 0)
            squares += values * values
            sums += tile * (values * scale)[None, :]
    return tl.sum(sums, 1) * tl.rsqrt(tl.sum(squares, 0) / K + epsilon)


@triton.jit
def normalised_pair(
    x, norm_weight, weight, first, count, later, later_count, apart, epsilon, EVEN_ROWS: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Two such products, of `count` (at most ROWS) rows from `first` on and of as many `apart` rows further on. `later`
    and `later_count` are those of the program AHEAD of this one."""
    inside = tl.arange(0, ROWS) < count
    rows = first + tl.arange(0, ROWS)
    others = rows + apart
    columns = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
    tile = load_rows(weight, rows, inside, columns, K, EVEN_ROWS and BLOCK <= K)
    other = load_rows(weight, others, inside, columns, K, EVEN_ROWS and BLOCK <= K)
    scale = load_columns(norm_weight, columns, K, BLOCK <= K)
    if AHEAD > 0:  # noqa: SIM102
        if tl.program_id(0) < AHEAD:
            call_ahead(weight, later, later_count, K)
            call_ahead(weight, later + apart, later_count, K)
    if PDL:
        gdc_wait()
    values = load_columns(x, columns, K, BLOCK <= K)
    squares = values * values
    values *= scale
    sums = tile * values[None, :]
    other_sums = other * values[None, :]
    if UNROLL:
        for k in tl.static_range(BLOCK, K, BLOCK):
            tile = load_rows(weight, rows, inside, k + columns, K, EVEN_ROWS and k + BLOCK <= K)
            other = load_rows(weight, others, inside, k + columns, K, EVEN_ROWS and k + BLOCK <= K)
            scale = load_columns(norm_weight, k + columns, K, k + BLOCK <= K)
            values = load_columns(x, k + columns, K, k + BLOCK <= K)
            squares += values * values
            values *= scale
            sums += tile * values[None, :]
            other_sums += other * values[None, :]
    else:
        for k in tl.range(BLOCK, K, BLOCK):
            tile = load_rows(weight, rows, inside, k + columns, K, EVEN_ROWS and K % BLOCK == 0)
            other = load_rows(weight, others, inside, k + columns, K, EVEN_ROWS and K % BLOCK == 0)
            scale = load_columns(norm_weight, k + columns, K, K % BLOCK == 0)
            values = load_columns(x, k + columns, K, K % BLOCK == 0)
            squares += values * values
            values *= scale
            sums += tile * values[None, :]
            other_sums += other * values[None, :]
    factor = tl.rsqrt(tl.sum(squares, 0) / K + epsilon)
    return tl.sum(sums, 1) * factor, tl.sum(other_sums, 1) * factor
