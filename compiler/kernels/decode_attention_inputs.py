"""Attention inputs for one row: each program computes a few pairs of one head's numbers, rotates them, and puts them
where they belong."""

from __future__ import annotations

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole
from hjgc.compiler.kernels.products import PRODUCT_AXES, normalised_pair, product_constants


@triton.jit
def decode_attention_inputs(
    x, norm_weight, weight, bias, query_norm, key_norm, cos, sin, query, key_cache, value_cache, start, epsilon,
    head_norm_epsilon, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, CAPACITY: tl.constexpr,
    RING: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
    AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (HALF + ROWS - 1) // ROWS
    head = tl.program_id(0) // PARTS
    before = tl.program_id(0) % PARTS * ROWS
    pairs = before + tl.arange(0, ROWS)
    inside = pairs < HALF
    top = head.to(tl.int64) * (2 * HALF)
    count = tl.minimum(HALF - before, ROWS)
    following = tl.program_id(0) + AHEAD
    later = following // PARTS * (2 * HALF) + following % PARTS * ROWS
    there = following < (HEADS + 2 * KV_HEADS) * PARTS
    later_count = tl.where(there, tl.minimum(HALF - following % PARTS * ROWS, ROWS), 0)
    first, second = normalised_pair(
        x, norm_weight, weight, top + before, count, later.to(tl.int64), later_count, HALF, epsilon,
        HALF % ROWS == 0, K, ROWS, BLOCK, UNROLL, AHEAD, PDL,
    )  # fmt: skip
    if bias is not None:
        first += tl.load(bias + top + pairs, mask=inside, other=0.0).to(tl.float32)
        second += tl.load(bias + top + HALF + pairs, mask=inside, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        if query_norm is not None:
            factor = tl.rsqrt(tl.sum(first * first + second * second, 0) / (2 * HALF) + head_norm_epsilon)
            norm = key_norm
            if head < HEADS:
                norm = query_norm
            first *= factor * tl.load(norm + pairs, mask=inside, other=0.0).to(tl.float32)
            second *= factor * tl.load(norm + HALF + pairs, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(cos + pairs, mask=inside, other=0.0)
        s = tl.load(sin + pairs, mask=inside, other=0.0)
        rotated = first * c - second * s
        second = second * c + first * s
        first = rotated
    if head < HEADS:
        tl.store(query + top + pairs, first, mask=inside)
        tl.store(query + top + HALF + pairs, second, mask=inside)
    else:
        cache = value_cache
        if head < HEADS + KV_HEADS:
            cache = key_cache
        kv_head = (head - HEADS) % KV_HEADS
        place = tl.load(start)
        if RING:
            place = place % CAPACITY
        row = (kv_head.to(tl.int64) * CAPACITY + place) * (2 * HALF)
        tl.store(cache + row + pairs, first, mask=inside)
        tl.store(cache + row + HALF + pairs, second, mask=inside)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    columns, half = int(axes["columns"]), int(axes["head_size"]) // 2
    found: dict[str, bool | int | str] = {
        "HEADS": axes["heads"],
        "KV_HEADS": axes["kv_heads"],
        "HALF": half,
        "CAPACITY": axes["capacity"],
        "RING": axes["ring"],
        "K": columns,
        **product_constants(axes, columns),
    }
    return found | {"ROWS": rows_per_program(axes)}


def rows_per_program(axes: Axes) -> int:
    """Pairs a program: a norm over the head needs all of them."""
    half = int(axes["head_size"]) // 2
    return triton.next_power_of_2(half) if axes["head_norm"] else int(axes["rows"])


TEMPLATE = Template(
    op="attention_inputs",
    function=decode_attention_inputs,
    parameters=(
        Parameter("x", "operand", "dtype"),
        Parameter("norm_weight", "operand", "weight_dtype"),
        Parameter("weight", "operand", "weight_dtype"),
        Parameter("bias", "operand", "weight_dtype", when="bias"),
        Parameter("query_norm", "operand", "weight_dtype", when="head_norm"),
        Parameter("key_norm", "operand", "weight_dtype", when="head_norm"),
        Parameter("cos", "operand", "float32"),
        Parameter("sin", "operand", "float32"),
        Parameter("query", "operand", "dtype"),
        Parameter("key_cache", "operand", "cache_dtype"),
        Parameter("value_cache", "operand", "cache_dtype"),
        Parameter("start", "field", "int32"),
        Parameter("epsilon", "attribute", "float32"),
        Parameter("head_norm_epsilon", "attribute", "float32", when="head_norm"),
    ),
    axes={
        "heads": Whole(1, 1024),
        "kv_heads": Whole(1, 1024),
        "head_size": Whole(2, 512),
        "capacity": Whole(1, 1 << 24),
        "ring": OneOf((False, True)),
        "columns": Whole(1, 1 << 20),
        "bias": OneOf((False, True)),
        "head_norm": OneOf((False, True)),
        "dtype": OneOf(DTYPES),
        "weight_dtype": OneOf(DTYPES),
        "cache_dtype": OneOf(DTYPES),
        **PRODUCT_AXES,
    },
    constants=constants,
    grid=lambda letters, axes: (
        (int(axes["heads"]) + 2 * int(axes["kv_heads"])) * -(-int(axes["head_size"]) // (2 * rows_per_program(axes))),
        1,
        1,
    ),
)
