"""Attention inputs for many rows: the two halves of a head side by side in one tile, so a pair meets its partner in
registers, is rotated there, and goes straight to the query or to its place in the cache."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Whole, blocks
from hjgc.compiler.kernels.prefill_product import (
    PRODUCT_AXES,
    multiply_tile,
    product_constants,
    tile_columns,
    tile_rows,
)


@triton.jit
def normalise_heads(first, second, gain, places, epsilon, inside, D: tl.constexpr, SLOT: tl.constexpr):
    """RMSNorm over each head, its pairs `SLOT` columns of the tile: both halves, multiplied by `gain` [D]."""
    M: tl.constexpr = first.shape[0]
    HEADS: tl.constexpr = first.shape[1] // SLOT
    squares = tl.where(inside[None, :], first * first + second * second, 0.0)
    mean = tl.sum(tl.reshape(squares, (M, HEADS, SLOT)), 2) / D
    scale = tl.rsqrt(mean + epsilon)[:, :, None]
    lower = tl.load(gain + places, mask=inside, other=0.0).to(tl.float32)[None, :]
    upper = tl.load(gain + D // 2 + places, mask=inside, other=0.0).to(tl.float32)[None, :]
    first = tl.reshape(tl.reshape(first, (M, HEADS, SLOT)) * scale, (M, HEADS * SLOT)) * lower
    second = tl.reshape(tl.reshape(second, (M, HEADS, SLOT)) * scale, (M, HEADS * SLOT)) * upper
    return first, second


@triton.jit
def rotate(first, second, cos, sin, rows, places, inside, HALF: tl.constexpr):
    angles = rows[:, None].to(tl.int64) * HALF + places[None, :]
    c = tl.load(cos + angles, mask=inside, other=0.0)
    s = tl.load(sin + angles, mask=inside, other=0.0)
    return first * c - second * s, second * c + first * s


@triton.jit
def store_pairs(target, first, second, places, inside, HALF: tl.constexpr):
    tl.store(target + places, first.to(target.dtype.element_ty), mask=inside)
    tl.store(target + places + HALF, second.to(target.dtype.element_ty), mask=inside)


@triton.jit
def finish(
    total,
    bias,
    query_norm,
    key_norm,
    cos,
    sin,
    query,
    key_cache,
    value_cache,
    begin,
    head_norm_epsilon,
    rows,
    first,
    weight_rows,
    count,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    CAPACITY: tl.constexpr,
    RING: tl.constexpr,
    SLOT: tl.constexpr,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
):
    """Columns of the tile from `first` on are the two halves of heads in turn; they may belong to query, key and value,
    of which most tiles have one."""
    M: tl.constexpr = total.shape[0]
    PAIRS: tl.constexpr = total.shape[1] // 2
    HALF: tl.constexpr = D // 2
    if BIAS:
        total += tl.load(bias + weight_rows).to(tl.float32)[None, :]
    lower, upper = tl.split(tl.reshape(total, (M, PAIRS, 2)))
    first_pair = first // 2
    pairs = first_pair + tl.arange(0, PAIRS)
    heads = pairs // SLOT
    places = pairs % SLOT
    whole = places < HALF
    present = (rows < count)[:, None]
    positions = begin + rows
    if RING:
        positions = positions % CAPACITY
    cache_rows = positions[:, None].to(tl.int64) * D
    if first_pair < HEADS * SLOT:
        mine = whole & (heads < HEADS)
        inside = present & mine[None, :]
        a, b = lower, upper
        if HEAD_NORM:
            a, b = normalise_heads(a, b, query_norm, places, head_norm_epsilon, mine, D, SLOT)
        a, b = rotate(a, b, cos, sin, rows, places, inside, HALF)
        at = rows[:, None].to(tl.int64) * (HEADS * D) + (heads * D + places)[None, :]
        store_pairs(query, a, b, at, inside, HALF)
    if (first_pair + PAIRS > HEADS * SLOT) & (first_pair < (HEADS + KV_HEADS) * SLOT):
        mine = whole & (heads >= HEADS) & (heads < HEADS + KV_HEADS)
        inside = present & mine[None, :]
        a, b = lower, upper
        if HEAD_NORM:
            a, b = normalise_heads(a, b, key_norm, places, head_norm_epsilon, mine, D, SLOT)
        a, b = rotate(a, b, cos, sin, rows, places, inside, HALF)
        at = cache_rows + ((heads - HEADS).to(tl.int64) * (CAPACITY * D) + places)[None, :]
        store_pairs(key_cache, a, b, at, inside, HALF)
    if first_pair + PAIRS > (HEADS + KV_HEADS) * SLOT:
        mine = whole & (heads >= HEADS + KV_HEADS) & (heads < HEADS + 2 * KV_HEADS)
        inside = present & mine[None, :]
        at = cache_rows + ((heads - HEADS - KV_HEADS).to(tl.int64) * (CAPACITY * D) + places)[None, :]
        store_pairs(value_cache, lower, upper, at, inside, HALF)


@triton.jit
def rows_of_weight(columns, ALL: tl.constexpr, D: tl.constexpr, SLOT: tl.constexpr):
    """Column c of the result is half c % 2 of pair c // 2; a pair is columns i and i + D // 2 of a head."""
    pairs = columns // 2
    heads = tl.minimum(pairs // SLOT, ALL - 1)
    return heads * D + tl.minimum(pairs % SLOT, D // 2 - 1) + (columns % 2) * (D // 2)


@triton.jit
def prefill_attention_inputs(
    x,
    norm_weight,
    weight,
    bias,
    query_norm,
    key_norm,
    cos,
    sin,
    query,
    key_cache,
    value_cache,
    start,
    length,
    epsilon,
    head_norm_epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    CAPACITY: tl.constexpr,
    RING: tl.constexpr,
    K: tl.constexpr,
    SLOT: tl.constexpr,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EXTRA_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXTRA_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SWAP: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """A head has D // 2 pairs, and `SLOT` places for them: more than it needs where heads must not straddle tiles."""
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    first_row = tl.program_id(0) * (BLOCK_M + EXTRA_M)
    first_column = tl.program_id(1) * (BLOCK_N + EXTRA_N)
    columns = first_column + tl.arange(0, BLOCK_N)
    more_columns = first_column + BLOCK_N + tl.arange(0, EXTRA_N if EXTRA_N > 0 else 1)
    weight_rows = rows_of_weight(columns, ALL, D, SLOT)
    more_weight_rows = rows_of_weight(more_columns, ALL, D, SLOT)
    if PDL:
        if EARLY:
            gdc_launch_dependents()
        gdc_wait()
    count = tl.load(length)
    if first_row < count:
        begin = tl.load(start)
        rows = first_row + tl.arange(0, BLOCK_M)
        more_rows = first_row + BLOCK_M + tl.arange(0, EXTRA_M if EXTRA_M > 0 else 1)
        total, wide, low, corner = multiply_tile(
            x, weight, norm_weight, rows, more_rows, weight_rows, more_weight_rows,
            count, epsilon, 0, K, K, BLOCK_M, EXTRA_M, BLOCK_N, EXTRA_N, BLOCK_K, STAGES, SWAP,
        )  # fmt: skip
        if PDL and not EARLY:
            gdc_launch_dependents()
        finish(
            total, bias, query_norm, key_norm, cos, sin, query, key_cache, value_cache, begin, head_norm_epsilon,
            rows, first_column, weight_rows, count, HEADS, KV_HEADS, D, CAPACITY, RING, SLOT, BIAS, HEAD_NORM,
        )  # fmt: skip
        if EXTRA_N > 0:
            finish(
                wide, bias, query_norm, key_norm, cos, sin, query, key_cache, value_cache, begin, head_norm_epsilon,
                rows, first_column + BLOCK_N, more_weight_rows, count,
                HEADS, KV_HEADS, D, CAPACITY, RING, SLOT, BIAS, HEAD_NORM,
            )  # fmt: skip
        if EXTRA_M > 0:
            finish(
                low, bias, query_norm, key_norm, cos, sin, query, key_cache, value_cache, begin, head_norm_epsilon,
                more_rows, first_column, weight_rows, count, HEADS, KV_HEADS, D, CAPACITY, RING, SLOT, BIAS, HEAD_NORM,
            )  # fmt: skip
            if EXTRA_N > 0:
                finish(
                    corner, bias, query_norm, key_norm, cos, sin, query, key_cache, value_cache, begin,
                    head_norm_epsilon, more_rows, first_column + BLOCK_N, more_weight_rows, count,
                    HEADS, KV_HEADS, D, CAPACITY, RING, SLOT, BIAS, HEAD_NORM,
                )  # fmt: skip


def slot(axes: Axes) -> int:
    """Columns of pairs that a head takes: no more than its pairs, unless heads are normalised and must be whole."""
    half = int(axes["head_size"]) // 2
    return triton.next_power_of_2(half) if axes["head_norm"] is True else half


def constants(axes: Axes) -> dict[str, AxisValue]:
    return {
        "HEADS": axes["heads"],
        "KV_HEADS": axes["kv_heads"],
        "D": axes["head_size"],
        "CAPACITY": axes["capacity"],
        "RING": axes["ring"],
        "SLOT": slot(axes),
        "BIAS": axes["bias"],
        "HEAD_NORM": axes["head_norm"],
        **product_constants(axes),
    }


def pairs(axes: Axes) -> int:
    """Columns of pairs over all heads of query, key and value."""
    return (int(axes["heads"]) + 2 * int(axes["kv_heads"])) * slot(axes)


TEMPLATE = Template(
    op="attention_inputs",
    function=prefill_attention_inputs,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("norm_weight", "operand", "dtype", when="norm"),
        Parameter("weight", "operand", "dtype"),
        Parameter("bias", "operand", "dtype", when="bias"),
        Parameter("query_norm", "operand", "dtype", when="head_norm"),
        Parameter("key_norm", "operand", "dtype", when="head_norm"),
        Parameter("cos", "operand", "float32"),
        Parameter("sin", "operand", "float32"),
        Parameter("query", "operand", "dtype"),
        Parameter("key_cache", "operand", "dtype"),
        Parameter("value_cache", "operand", "dtype"),
        Parameter("start", "field", "int32"),
        Parameter("length", "field", "int32"),
        Parameter("epsilon", "attribute", "float32"),
        Parameter("head_norm_epsilon", "attribute", "float32"),
    ),
    axes=PRODUCT_AXES
    | {
        "heads": Whole(1, 1024),
        "kv_heads": Whole(1, 1024),
        "head_size": Whole(2, 512),
        "capacity": Whole(1, 1 << 24),
        "ring": OneOf((False, True)),
        "norm": OneOf((False, True)),
        "bias": OneOf((False, True)),
        "head_norm": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (
        blocks(letters["M"], tile_rows(axes)),
        blocks(pairs(axes), tile_columns(axes) // 2),
        1,
    ),
)
