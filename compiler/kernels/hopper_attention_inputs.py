"""Attention inputs on Hopper: the two halves of a pair in one thread, rotated there, and sent straight to the query or
to their place in the cache."""

from __future__ import annotations

from hjgc.compiler.kernels.declaration import Axes, AxisValue, OneOf, Parameter, Template, Whole
from hjgc.compiler.kernels.hopper_product import (
    OCTET,
    PRODUCT_AXES,
    constants,
    cuda_function,
    grid,
    map_of_pairs,
    map_of_x,
    refuse,
    staging_bytes,
    tile_rows,
)
from hjgc.compiler.kernels.hopper_text import PAIRS

FINISH = r"""
__device__ __forceinline__ void add_bias(Sums& sums, const Tile& tile, const Half* bias) {
    #pragma unroll
    for (int s = 0; s < SLABS; ++s) {
        int octet = my_octet(tile, s);
        if (octet >= ALL_OCTETS) continue;
        const Half* own = bias + octet / OCTETS * (2 * HALF) + octet % OCTETS * 8 + threadIdx.x % 32 / 4;
        float lower = widen(own[0]), upper = widen(own[HALF]);
        #pragma unroll
        for (int i = 0; i < TILE_N / 2; ++i) sums[s][i] += i % 4 < 2 ? lower : upper;
    }
}

// The squares of each octet, summed by token, where all warps can read them: [octets of the tile][TILE_N].
__device__ __forceinline__ void share_squares(const Sums& sums, float* squares) {
    const int lane = threadIdx.x % 32, octet = threadIdx.x / 128 * SLABS * 4 + threadIdx.x % 128 / 32;
    #pragma unroll
    for (int s = 0; s < SLABS; ++s)
        #pragma unroll
        for (int i = 0; i < TILE_N / 4; ++i) {
            float lower = sums[s][i / 2 * 4 + i % 2], upper = sums[s][i / 2 * 4 + 2 + i % 2];
            float square = lower * lower + upper * upper;
            #pragma unroll
            for (int far = 4; far < 32; far *= 2) square += __shfl_xor_sync(0xffffffffu, square, far);
            if (lane < 4) squares[(octet + s * 4) * TILE_N + i / 2 * 8 + lane * 2 + i % 2] = square;
        }
    meet(WARPGROUPS + 1, WARPGROUPS * 128);
}

// Of the head that holds `octet` of the tile: 1 / sqrt(mean of squares + epsilon).
__device__ __forceinline__ float inverse_rms(const float* squares, int octet, int token, float epsilon) {
    float total = 0.0f;
    #pragma unroll
    for (int i = 0; i < OCTETS; ++i) total += squares[(octet / OCTETS * OCTETS + i) * TILE_N + token];
    return rsqrtf(total / (2 * HALF) + epsilon);
}

__device__ __forceinline__ void finish(
    Sums& sums, const Tile& tile, int count, char* room, const Half* bias, const Half* query_norm,
    const Half* key_norm, const float* cos, const float* sin, Half* query, Half* key_cache, Half* value_cache,
    const int* start, float head_norm_epsilon) {
    constexpr int D = 2 * HALF;
    const int begin = *start;
    float* squares = (float*)(room + STAGING_BYTES);
    if (BIAS) add_bias(sums, tile, bias);
    if (HEAD_NORM) share_squares(sums, squares);
    // Cosine and sine by slab and token of the round: all loads of a round in flight at once, past no branch.
    float turns[SLABS][8][2];
    finish_pairs<2>(tile, count, room,
        [&](int first) {
            #pragma unroll
            for (int s = 0; s < SLABS; ++s) {
                const int octet = my_octet(tile, s), place = octet % OCTETS * 8 + threadIdx.x % 32 / 4;
                if (octet / OCTETS >= HEADS + KV_HEADS) continue;
                #pragma unroll
                for (int i = 0; i < 8; ++i) {
                    int token = tile.token + first + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
                    u64 at = (u64)min(token, count - 1) * HALF + place;
                    turns[s][i][0] = cos[at];
                    turns[s][i][1] = sin[at];
                }
            }
        },
        [&](int s, int i, u32* made) {
            const int octet = my_octet(tile, s), head = octet / OCTETS;
            const int place = octet % OCTETS * 8 + threadIdx.x % 32 / 4;
            float lower[2], upper[2];
            #pragma unroll
            for (int t = 0; t < 2; ++t) {
                float a = sums[s][i * 4 + t], b = sums[s][i * 4 + 2 + t];
                if (head < HEADS + KV_HEADS) {
                    if (HEAD_NORM) {
                        const Half* gain = (head < HEADS ? query_norm : key_norm) + place;
                        const int line = i * 8 + threadIdx.x % 4 * 2 + t;
                        float scale = inverse_rms(squares, octet - tile.row / 16, line, head_norm_epsilon);
                        a *= scale * widen(gain[0]);
                        b *= scale * widen(gain[HALF]);
                    }
                    const float c = turns[s][i % 4 * 2 + t][0], d = turns[s][i % 4 * 2 + t][1];
                    lower[t] = a * c - b * d;
                    upper[t] = b * c + a * d;
                } else {
                    lower[t] = a;
                    upper[t] = b;
                }
            }
            made[0] = pack(lower[0], lower[1]);
            made[1] = pack(upper[0], upper[1]);
        },
        [&](int token, int octet, int half) {
            const int head = octet / OCTETS, place = octet % OCTETS * 8 + half * HALF;
            if (head < HEADS) return query + ((u64)token * HEADS + head) * D + place;
            const bool key = head < HEADS + KV_HEADS;
            const int line = head - HEADS - (key ? 0 : KV_HEADS);
            auto* cache = key ? key_cache : value_cache;
            if (RING) return cache + ((u64)line * CAPACITY + (begin + token) % CAPACITY) * D + place;
            return cache + ((u64)line * CAPACITY + begin + token) * D + place;
        });
    // The squares are read until all warps have finished.
    if (HEAD_NORM) meet(WARPGROUPS + 1, WARPGROUPS * 128);
}
"""

PARAMETERS = (
    Parameter("x", "tensor_map", "dtype", map=map_of_x),
    Parameter("weight", "tensor_map", "dtype", map=lambda axes: map_of_pairs(axes, half(axes))),
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
    Parameter("head_norm_epsilon", "attribute", "float32", when="head_norm"),
)


def half(axes: Axes) -> int:
    return int(axes["head_size"]) // 2


def octets_of_tile(axes: Axes) -> int:
    return tile_rows(axes) // (2 * OCTET)


def own_bytes(axes: Axes) -> int:
    squares = octets_of_tile(axes) * int(axes["block_n"]) * 4 if axes["head_norm"] is True else 0
    return staging_bytes(axes, 2) + squares


def reason(axes: Axes) -> str | None:
    heads = int(axes["heads"]) + 2 * int(axes["kv_heads"])
    if int(axes["head_size"]) % (2 * OCTET):
        return f"expected a head size that is a multiple of 16, found {axes['head_size']}"
    if int(axes["rows"]) != heads * int(axes["head_size"]):
        return f"expected rows of {heads} heads of {axes['head_size']}, found {axes['rows']}"
    if axes["head_norm"] is True and axes["height"]:
        return f"expected tiles of all rows that are multiplied where heads are normalised, found {axes['height']}"
    if axes["head_norm"] is True and octets_of_tile(axes) % (half(axes) // OCTET):
        return f"expected tiles of whole heads where heads are normalised, found {tile_rows(axes)} rows"
    return refuse(axes, own_bytes(axes))


def all_constants(axes: Axes) -> dict[str, AxisValue]:
    return constants(axes, half(axes), own_bytes(axes)) | {
        "HEADS": axes["heads"],
        "KV_HEADS": axes["kv_heads"],
        "CAPACITY": axes["capacity"],
        "RING": axes["ring"],
        "BIAS": axes["bias"],
        "HEAD_NORM": axes["head_norm"],
        "STAGING_BYTES": staging_bytes(axes, 2),
    }


TEMPLATE = Template(
    op="attention_inputs",
    function=cuda_function("hopper_attention_inputs", PAIRS + FINISH, PARAMETERS, own_bytes),
    parameters=PARAMETERS,
    axes=PRODUCT_AXES
    | {
        "heads": Whole(1, 1024),
        "kv_heads": Whole(1, 1024),
        "head_size": Whole(16, 512),
        "capacity": Whole(1, 1 << 24),
        "ring": OneOf((False, True)),
        "bias": OneOf((False, True)),
        "head_norm": OneOf((False, True)),
    },
    constants=all_constants,
    grid=grid,
    refuse=reason,
)
