"""Attention for many rows: each program takes a few rows of one head over the keys and values in the cache, blockwise,
with the running softmax of Milakov and Gimelshein (2018) as in FlashAttention (Dao et al., 2022)."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Whole, blocks


@triton.jit
def attend_blocks(
    q,
    keys,
    values,
    rows,
    first,
    last,
    end,
    scale,
    peak,
    total,
    y,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    RING: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The running maximum `peak`, sum `total` and weighted values `y` after the keys `first` to `last`. Where there is
    an `end`, only so many keys are in the cache, and a row at position p sees those up to p only, the last WINDOW of
    them if that is not 0. Positions go round in RING rows, if that is not 0."""
    sizes = tl.arange(0, BLOCK_D)
    lanes = tl.arange(0, BLOCK_N)
    for n in tl.range(first, last, BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        places = n + lanes
        if RING > 0:
            places = places % RING
        at = places[:, None].to(tl.int64) * D + sizes[None, :]
        if end is not None:
            inside = ((n + lanes) < end)[:, None] & (sizes < D)[None, :]
            k = tl.load(keys + at, mask=inside, other=0.0)
        elif D != BLOCK_D:
            k = tl.load(keys + at, mask=(sizes < D)[None, :], other=0.0)
        else:
            k = tl.load(keys + at)
        scores = tl.dot(q, tl.trans(k)) * scale
        if end is not None:
            scores = tl.where((n + lanes)[None, :] <= rows[:, None], scores, -float("inf"))
        if WINDOW > 0:
            scores = tl.where((n + lanes)[None, :] > rows[:, None] - WINDOW, scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shift = higher
        if WINDOW > 0:
            # A row may see nothing of a block.
            shift = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(peak - shift)
        total = total * fade + tl.sum(weights, 1)
        peak = higher
        if end is not None:
            inside = ((n + lanes) < end)[:, None] & (sizes < D)[None, :]
            v = tl.load(values + at, mask=inside, other=0.0)
        elif D != BLOCK_D:
            v = tl.load(values + at, mask=(sizes < D)[None, :], other=0.0)
        else:
            v = tl.load(values + at)
        y = tl.dot(weights.to(v.dtype), v, y * fade[:, None])
    return peak, total, y


@triton.jit
def prefill_attention(
    query,
    key_cache,
    value_cache,
    y,
    start,
    length,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    CAPACITY: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(0)
    count = tl.load(length)
    begin = tl.load(start)
    # The last rows see the most keys, so their tiles go first.
    tile = tl.cdiv(count, BLOCK_M) - 1 - tl.program_id(1)
    if tile >= 0:
        rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        sizes = tl.arange(0, BLOCK_D)
        places = rows[:, None].to(tl.int64) * (HEADS * D) + head * D + sizes[None, :]
        inside = (rows < count)[:, None] & (sizes < D)[None, :]
        q = tl.load(query + places, mask=inside, other=0.0)
        kv_head = (head // (HEADS // KV_HEADS)).to(tl.int64)
        keys = key_cache + kv_head * (CAPACITY * D)
        values = value_cache + kv_head * (CAPACITY * D)
        positions = begin + rows
        end = begin + count
        seen_by_all = (begin + tile * BLOCK_M + 1) // BLOCK_N * BLOCK_N
        last = tl.minimum(begin + (tile + 1) * BLOCK_M, end)
        peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        steep = scale * 1.4426950408889634
        if WINDOW > 0:
            lowest = tl.maximum(begin + tile * BLOCK_M - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
            peak, total, sums = attend_blocks(
                q, keys, values, positions, lowest, last, end, steep, peak, total, sums,
                D, BLOCK_D, BLOCK_N, WINDOW, CAPACITY, STAGES,
            )  # fmt: skip
        else:
            peak, total, sums = attend_blocks(
                q, keys, values, positions, 0, seen_by_all, None, steep, peak, total, sums,
                D, BLOCK_D, BLOCK_N, WINDOW, WINDOW, STAGES,
            )  # fmt: skip
            peak, total, sums = attend_blocks(
                q, keys, values, positions, seen_by_all, last, end, steep, peak, total, sums,
                D, BLOCK_D, BLOCK_N, WINDOW, WINDOW, STAGES,
            )  # fmt: skip
        tl.store(y + places, (sums / total[:, None]).to(y.dtype.element_ty), mask=inside)


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {
        "HEADS": axes["heads"],
        "KV_HEADS": axes["kv_heads"],
        "D": axes["head_size"],
        "CAPACITY": axes["capacity"],
        "WINDOW": axes["window"],
        "BLOCK_M": axes["block_m"],
        "BLOCK_N": axes["block_n"],
        "BLOCK_D": max(16, triton.next_power_of_2(int(axes["head_size"]))),
        "STAGES": axes["stages"],
        "PDL": axes["pdl"],
    }


TEMPLATE = Template(
    op="attention",
    function=prefill_attention,
    parameters=(
        Parameter("query", "operand", "dtype"),
        Parameter("key_cache", "operand", "dtype"),
        Parameter("value_cache", "operand", "dtype"),
        Parameter("y", "operand", "dtype"),
        Parameter("start", "field", "int32"),
        Parameter("length", "field", "int32"),
        Parameter("scale", "attribute", "float32"),
    ),
    axes={
        "dtype": OneOf(("float16", "bfloat16")),
        "heads": Whole(1, 1024),
        "kv_heads": Whole(1, 1024),
        "head_size": Whole(2, 512),
        "capacity": Whole(1, 1 << 24),
        "window": Whole(0, 1 << 24),
        "block_m": OneOf((16, 32, 64, 128)),
        "block_n": OneOf((16, 32, 64, 128)),
        "stages": Whole(1, 8),
        "warps": OneOf((4, 8)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (int(axes["heads"]), blocks(letters["M"], int(axes["block_m"])), 1),
)
