"""Attention for one row: each program attends with the queries of one kv head to a share of the cache; the last one of
a head to finish combines the shares, in their order.

How many shares there are depends on the length alone, which is read on the device. Before the wait a program guesses it
and calls the first rows of its share into the L2 cache: else they would queue behind the weights of later kernels.
"""

# Triton's language, as its types see it: a loop is no iterator, a constant of the language no Python number.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import DTYPES, Axes, OneOf, Parameter, Template, Whole
from hjgc.compiler.kernels.products import call_pieces

COMBINED = 16384
"""Numbers that one program combines at a time."""


@triton.jit
def decode_attention(
    query, key_cache, value_cache, y, partials, counters, start, scale, KV_HEADS: tl.constexpr, QUERIES: tl.constexpr,
    PADDED: tl.constexpr, TOGETHER: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, CAPACITY: tl.constexpr,
    WINDOW: tl.constexpr, SHARES: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    share = tl.program_id(1)
    # Rows that positions go round in; 0 where they never do.
    RING: tl.constexpr = CAPACITY if WINDOW > 0 else 0
    base = kv_head.to(tl.int64) * (CAPACITY * SIZE)
    keys = key_cache + base
    values = value_cache + base
    heads = kv_head * QUERIES + tl.arange(0, PADDED)
    here = tl.arange(0, PADDED) < QUERIES
    columns = tl.arange(0, WIDTH)
    wide = columns < SIZE
    places = heads[:, None] * SIZE + columns[None, :]
    known = here[:, None] & wide[None, :]
    # Powers of two are what the hardware computes: 1 / ln 2 goes into the scale.
    power = scale * 1.4426950408889634
    if PDL:
        gdc_launch_dependents()
        if AHEAD > 0:
            # Whatever the guess says, the rows asked for exist.
            guess = tl.minimum(tl.maximum(tl.load(start, volatile=True), 0), CAPACITY - 1) + 1
            each = share_of(guess, SHARES, LEAST, BLOCK)
            count = tl.minimum(tl.minimum(each, AHEAD), guess - share * each)
            call_rows(keys, share * each, count, SIZE)
            call_rows(values, share * each, count, SIZE)
        gdc_wait()
    # Past the L1 cache, where the guess may have left what was there before the wait.
    length = tl.load(start, cache_modifier=".cg") + 1
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(length - WINDOW, 0)
    each = share_of(length - lowest, SHARES, LEAST, BLOCK)
    active = tl.cdiv(length - lowest, each)
    if share < active:
        first = lowest + share * each
        end = tl.minimum(first + each, length)
        q = tl.load(query + places, mask=known, other=0.0)
        if QUERIES == 1:
            # A sum over an axis of one.
            alone = tl.sum(q.to(tl.float32), 0) * power
            result, top, total = attend_one(alone, keys, values, first, end, SIZE, WIDTH, RING, BLOCK, AHEAD)
        else:
            result, top, total = attend_group(
                q, power, keys, values, first, end, PADDED, SIZE, WIDTH, RING, BLOCK, AHEAD
            )  # fmt: skip
        if active == 1:
            tl.store(y + places, result / total[:, None], mask=known)
        else:
            slots = (kv_head * SHARES + share) * QUERIES + tl.arange(0, PADDED)
            ends = partials + KV_HEADS * SHARES * QUERIES * SIZE
            tl.store(partials + slots[:, None] * SIZE + columns[None, :], result, mask=known)
            tl.store(ends + 2 * slots, top, mask=here)
            tl.store(ends + 2 * slots + 1, total, mask=here)
            tl.debug_barrier()
            if tl.atomic_add(counters + kv_head, 1, sem="acq_rel") == active - 1:
                tl.store(counters + kv_head, 0)
                combine(y, partials, ends, kv_head, active, columns, wide, QUERIES, TOGETHER, SIZE, SHARES)


@triton.jit
def load_block(cache, first, end, SIZE: tl.constexpr, WIDTH: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr):
    """Positions `first` to `first + BLOCK` of a head's cache, zero from `end` on."""
    rows = first + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    kept = (rows < end)[:, None] & (columns < SIZE)[None, :]
    if RING > 0:
        rows = rows % RING
    return tl.load(cache + rows[:, None] * SIZE + columns[None, :], mask=kept, other=0.0)


@triton.jit
def attend_one(
    q, keys, values, first, end, SIZE: tl.constexpr, WIDTH: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """One query [WIDTH] over rows first to end: (sums [1, WIDTH], highest score [1], weight [1]). Every row of a block
    keeps a softmax of its own, so that threads meet only at the end."""
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    summed = tl.zeros([BLOCK, WIDTH], tl.float32)
    for row in range(first, end, BLOCK):
        if AHEAD > 0:
            later = row + AHEAD
            call_rows(keys, later, tl.minimum(end - later, BLOCK), SIZE)
            call_rows(values, later, tl.minimum(end - later, BLOCK), SIZE)
        key = load_block(keys, row, end, SIZE, WIDTH, RING, BLOCK).to(tl.float32)
        value = load_block(values, row, end, SIZE, WIDTH, RING, BLOCK).to(tl.float32)
        scores = tl.where(row + tl.arange(0, BLOCK) < end, tl.sum(q[None, :] * key, 1), float("-inf"))
        raised = tl.maximum(highest, scores)
        shift = tl.where(raised == float("-inf"), 0.0, raised)
        fade = tl.exp2(highest - shift)
        weights = tl.exp2(scores - shift)
        total = total * fade + weights
        summed = summed * fade[:, None] + weights[:, None] * value
        highest = raised
    top = tl.max(highest, 0)
    factors = tl.exp2(highest - top)
    result = tl.sum(summed * factors[:, None], 0)
    one = tl.zeros([1], tl.float32)
    return result[None, :], one + top, one + tl.sum(total * factors, 0)


@triton.jit
def attend_group(
    q, power, keys, values, first, end, PADDED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    RING: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The same for the queries [PADDED, WIDTH] that share a kv head, on tensor cores: sums [PADDED, WIDTH], highest
    scores and weights [PADDED]."""
    highest = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    summed = tl.zeros([PADDED, WIDTH], tl.float32)
    for row in range(first, end, BLOCK):
        if AHEAD > 0:
            later = row + AHEAD
            call_rows(keys, later, tl.minimum(end - later, BLOCK), SIZE)
            call_rows(values, later, tl.minimum(end - later, BLOCK), SIZE)
        key = load_block(keys, row, end, SIZE, WIDTH, RING, BLOCK)
        value = load_block(values, row, end, SIZE, WIDTH, RING, BLOCK)
        scores = tl.dot(q.to(key.dtype), key.trans(1, 0), input_precision="ieee") * power
        scores = tl.where((row + tl.arange(0, BLOCK) < end)[None, :], scores, float("-inf"))
        # The first row of a block is always there, so that no maximum is minus infinity.
        raised = tl.maximum(highest, tl.max(scores, 1))
        fade = tl.exp2(highest - raised)
        weights = tl.exp2(scores - raised[:, None])
        total = total * fade + tl.sum(weights, 1)
        summed = summed * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        highest = raised
    return summed, highest, total


@triton.jit
def combine(
    y, partials, ends, kv_head, active, columns, wide, QUERIES: tl.constexpr, TOGETHER: tl.constexpr,
    SIZE: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """The `active` shares of one kv head's queries, which other programs have written, as one; TOGETHER queries at a
    time, since each time waits for memory."""
    shares = tl.arange(0, SHARES)
    for first in tl.static_range(0, QUERIES, TOGETHER):
        heads = first + tl.arange(0, TOGETHER)
        here = heads < QUERIES
        slots = (kv_head * SHARES + shares[:, None]) * QUERIES + heads[None, :]
        done = (shares < active)[:, None] & here[None, :]
        tops = tl.load(ends + 2 * slots, mask=done, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(ends + 2 * slots + 1, mask=done, other=0.0, cache_modifier=".cg")
        parts = partials + slots[:, :, None] * SIZE + columns[None, None, :]
        tile = tl.load(parts, mask=done[:, :, None] & wide[None, None, :], other=0.0, cache_modifier=".cg")
        factors = tl.exp2(tops - tl.max(tops, 0)[None, :])
        rows = tl.sum(tile * factors[:, :, None], 0) / tl.sum(sums * factors, 0)[:, None]
        places = (kv_head * QUERIES + heads)[:, None] * SIZE + columns[None, :]
        tl.store(y + places, rows, mask=here[:, None] & wide[None, :])


@triton.jit
def share_of(length, SHARES: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of one share: whole blocks, at least LEAST."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, SHARES), BLOCK) * BLOCK, LEAST)


@triton.jit
def call_rows(cache, first, count, SIZE: tl.constexpr):
    """Ask the L2 cache for `count` (none if not over 0) rows of a head's cache from `first` on."""
    PIECE: tl.constexpr = 16384
    ITEM: tl.constexpr = cache.dtype.element_ty.primitive_bitwidth // 8
    offsets = tl.arange(0, 128) * PIECE
    sizes = tl.minimum(tl.maximum(count * (SIZE * ITEM) - offsets, 0), PIECE)
    call_pieces(cache + first.to(tl.int64) * SIZE, offsets, sizes)


def constants(axes: Axes) -> dict[str, bool | int | str]:
    queries, size = int(axes["heads"]) // int(axes["kv_heads"]), int(axes["head_size"])
    return {
        "KV_HEADS": axes["kv_heads"],
        "QUERIES": queries,
        # Tensor cores take 16 rows at least.
        "PADDED": 1 if queries == 1 else max(16, triton.next_power_of_2(queries)),
        "TOGETHER": _together(queries, triton.next_power_of_2(size) * int(axes["shares"])),
        "SIZE": size,
        "WIDTH": triton.next_power_of_2(size),
        "CAPACITY": axes["capacity"],
        "WINDOW": axes["window"],
        "SHARES": axes["shares"],
        "LEAST": -(-int(axes["least"]) // int(axes["block"])) * int(axes["block"]),
        "BLOCK": axes["block"],
        # Rows must start at multiples of 16 bytes to be called ahead, and lie one behind the other.
        "AHEAD": axes["ahead"] if axes["pdl"] is True and size % 8 == 0 and not axes["window"] else 0,
        "PDL": axes["pdl"],
    }


def _together(queries: int, numbers: int) -> int:
    """Queries whose shares are combined at a time, with so many numbers each: as many as registers hold."""
    return max(1, min(triton.next_power_of_2(queries), COMBINED // numbers))


TEMPLATE = Template(
    op="attention",
    function=decode_attention,
    parameters=(
        Parameter("query", "operand", "dtype"),
        Parameter("key_cache", "operand", "cache_dtype"),
        Parameter("value_cache", "operand", "cache_dtype"),
        Parameter("y", "operand", "dtype"),
        Parameter("partials", "operand", "float32"),
        Parameter("counters", "operand", "int32"),
        Parameter("start", "field", "int32"),
        Parameter("scale", "attribute", "float32"),
    ),
    axes={
        "heads": Whole(1, 1024),
        "kv_heads": Whole(1, 1024),
        "head_size": Whole(2, 512),
        "capacity": Whole(1, 1 << 24),
        "window": Whole(0, 1 << 24),
        "shares": OneOf((1, 2, 4, 8, 16, 32, 64)),
        "least": Whole(1, 1 << 16),
        "block": OneOf((16, 32, 64, 128, 256)),
        "ahead": Whole(0, 1024),
        "dtype": OneOf(DTYPES),
        "cache_dtype": OneOf(DTYPES),
        "warps": OneOf((1, 2, 4, 8, 16)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (int(axes["kv_heads"]), int(axes["shares"]), 1),
)
