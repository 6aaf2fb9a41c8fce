"""Attention of a function: each program takes a few queries of one head over all keys, blockwise, with the running
softmax of Milakov and Gimelshein (2018) as in FlashAttention (Dao et al., 2022).

Heads lie wherever strides say, so that nothing has to be moved for it: strides and offsets are counted in units of
UNIT elements (MASK_UNIT of the mask's), which lets loads be wide.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hjgc.compiler.kernels.declaration import ABSENT, Axes, AxisValue, OneOf, Parameter, Template, Whole

STRIDES = tuple(f"{name}_{axis}" for name in ("query", "key", "value") for axis in ("batch", "head", "row", "first"))
RESULT_STRIDES = ("result_batch", "result_head", "result_row")
MASK_STRIDES = ("mask_batch", "mask_head", "mask_row")
SIZES = (*STRIDES, *RESULT_STRIDES, *MASK_STRIDES, "batches", "heads", "shared_by", "rows", "keys")


@triton.jit
def tensor_attention(
    x0,
    x1,
    x2,
    x3,
    y0,
    query_batch,
    query_head,
    query_row,
    query_first,
    key_batch,
    key_head,
    key_row,
    key_first,
    value_batch,
    value_head,
    value_row,
    value_first,
    result_batch,
    result_head,
    result_row,
    mask_batch,
    mask_head,
    mask_row,
    batches,
    heads,
    shared_by,
    rows,
    keys,
    scale,
    D: tl.constexpr,
    E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    UNIT: tl.constexpr,
    MASK_UNIT: tl.constexpr,
    MASK_KEY: tl.constexpr,
    CAUSAL: tl.constexpr,
    BOOLEAN: tl.constexpr,
    GUARDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    batch = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    group = head // shared_by
    # No grid is empty, but a batch may be.
    rows = tl.where(batch < batches, rows, 0)
    keys = tl.where(batch < batches, keys, 0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    queries = x0 + (batch * query_batch + head * query_head + query_first + m * query_row)[:, None] * UNIT + d[None, :]
    key = x1 + (batch * key_batch + group * key_head + key_first) * UNIT + d[:, None]
    value = x2 + (batch * value_batch + group * value_head + value_first) * UNIT + e[None, :]
    q = tl.load(queries, mask=(m < rows)[:, None] & (d < D)[None, :], other=0.0)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    last = keys
    if CAUSAL:
        last = tl.minimum(keys, tl.program_id(1) * BLOCK_M + BLOCK_M)
    for start in tl.range(0, last, BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        at = start + n
        k = tl.load(key + (at * key_row)[None, :] * UNIT, mask=(at < keys)[None, :] & (d < D)[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        seen = (at < keys)[None, :] & (m < rows)[:, None]
        if x3 is not None:
            place = (batch * mask_batch + head * mask_head + m * mask_row)[:, None] * MASK_UNIT + at[None, :] * MASK_KEY
            if BOOLEAN:
                scores = tl.where(tl.load(x3 + place, mask=seen, other=0), scores, -float("inf"))
            else:
                scores += tl.load(x3 + place, mask=seen, other=0.0).to(tl.float32)
        if CAUSAL:
            scores = tl.where(at[None, :] <= m[:, None], scores, -float("inf"))
        scores = tl.where((at < keys)[None, :], scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        # Not scaled for exp2 before: what masks with the least finite number must stay finite.
        weights = tl.exp(scores - shift[:, None])
        fade = tl.exp(peak - shift)
        total = total * fade + tl.sum(weights, 1)
        peak = higher
        v = tl.load(value + (at * value_row)[:, None] * UNIT, mask=(at < keys)[:, None] & (e < E)[None, :], other=0.0)
        sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
    # Without a key there is nothing to be added up; where none is seen it depends.
    total = tl.where((total == 0.0) & (GUARDED or keys == 0), 1.0, total)
    result = y0 + (batch * result_batch + head * result_head + m * result_row)[:, None] * UNIT + e[None, :]
    y = (sums / total[:, None]).to(y0.dtype.element_ty)
    tl.store(result, y, mask=(m < rows)[:, None] & (e < E)[None, :])


def constants(axes: Axes) -> dict[str, AxisValue]:
    size, width = int(axes["size"]), int(axes["width"])
    return {
        "D": size,
        "E": width,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        "BLOCK_E": max(16, triton.next_power_of_2(width)),
        "UNIT": axes["unit"],
        "MASK_UNIT": axes["mask_unit"],
        "MASK_KEY": 1 if axes["mask_keys"] else 0,
        "CAUSAL": axes["causal"],
        "BOOLEAN": axes["mask"] == "bool",
        "GUARDED": axes["guarded"],
        "BLOCK_M": axes["block_m"],
        "BLOCK_N": axes["block_n"],
        "STAGES": axes["stages"],
        "PDL": axes["pdl"],
    }


TEMPLATE = Template(
    op="attention_rows",
    function=tensor_attention,
    parameters=(
        Parameter("x0", "operand", "dtype"),
        Parameter("x1", "operand", "dtype"),
        Parameter("x2", "operand", "dtype"),
        Parameter("x3", "operand", "mask", when="mask"),
        Parameter("y0", "operand", "dtype"),
        *(Parameter(name, "size", "int32") for name in SIZES),
        Parameter("scale", "attribute", "float32"),
    ),
    axes={
        "dtype": OneOf(("float16", "bfloat16", "float32")),
        "size": Whole(1, 512),
        "width": Whole(1, 512),
        "unit": OneOf((1, 2, 4, 8, 16)),
        "causal": OneOf((False, True)),
        "mask": OneOf((ABSENT, "bool", "float16", "bfloat16", "float32")),
        "mask_unit": OneOf((1, 2, 4, 8, 16)),
        "mask_keys": OneOf((False, True)),
        "guarded": OneOf((False, True)),
        "block_m": OneOf((16, 32, 64, 128)),
        "block_n": OneOf((16, 32, 64, 128)),
        "stages": Whole(1, 8),
        "warps": OneOf((1, 2, 4, 8)),
        "pdl": OneOf((False, True)),
    },
    constants=constants,
    grid=lambda letters, axes: (letters["programs"], letters["tiles"], 1),
)
