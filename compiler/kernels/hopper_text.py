"""What is the CUDA C++ of the products for Hopper: the loop that all share, and the end of those whose rows are pairs?

`hopper_product` says what it does, and gives its constants; each template adds a `finish`.
"""

from __future__ import annotations


def multiply(tokens: int, kind: str) -> str:
    """sums += 64 x 16 of the weight by 16 x `tokens` of x; `keep` 0: the sums so far do not count."""
    count = tokens // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return (
        f"__device__ __forceinline__ void multiply(float (&d)[{count}], u64 a, u64 b, u32 keep) {{\n"
        f'    asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count + 2}, 0; "\n'
        f'        "wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{kind}.{kind} {{{registers}}}, "\n'
        f'        "%{count}, %{count + 1}, p, 1, 1, 0, 0; }}"\n'
        f'        : {operands} : "l"(a), "l"(b), "r"(keep));\n}}\n'
    )


BASICS = r"""
typedef unsigned short Half;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(64) CUtensorMap { u64 opaque[16]; };

constexpr int WEIGHT_BYTES = TILE_M * 128, X_BYTES = TILE_N * 128, STAGE_BYTES = WEIGHT_BYTES + X_BYTES;
constexpr int WEIGHT_UNITS = SHARE_X ? WEIGHT_TILES / 2 : WEIGHT_TILES;
constexpr int TOKEN_UNITS = SHARE_WEIGHT ? TOKEN_TILES / 2 : TOKEN_TILES;
constexpr int UNITS = WEIGHT_UNITS * TOKEN_UNITS * SPLITS;

typedef float Sums[SLABS][TILE_N / 2];

__device__ __forceinline__ float widen(Half h) {
    float f;
#ifdef CONVERT_F16
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
#else
    f = __uint_as_float((u32)h << 16);
#endif
    return f;
}

// Two numbers rounded, the first in the lower half.
__device__ __forceinline__ u32 pack(float first, float second) {
    u32 packed;
#ifdef CONVERT_F16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
#endif
    return packed;
}

__device__ __forceinline__ u32 shared_address(const void* p) {
    u32 address;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(p));
    return address;
}

__device__ __forceinline__ void make_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ bool has_passed(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
    return passed;
}

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    while (!has_passed(barrier, parity)) {}
}

__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

// One arrival at the barrier of block `rank` of the cluster. Only the copy engine writes what this thread has read, so
// nothing needs a release at the scope of the cluster, which costs a fence of all memory, 0.4 us a step.
__device__ __forceinline__ void arrive(u32 barrier, u32 rank) {
    if (CLUSTER == 1) {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
    } else {
        asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
            "mbarrier.arrive.shared::cluster.b64 _, [there]; }" :: "r"(barrier), "r"(rank) : "memory");
    }
}

__device__ __forceinline__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}

__device__ __forceinline__ void meet(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void copy2(u32 to, const void* map, u32 barrier, int column, int row, bool both) {
    if (both) {
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%3, %4}], [%2], %5;"
            :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row), "h"((Half)3) : "memory");
    } else {
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4}], [%2];" :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(row) : "memory");
    }
}

__device__ __forceinline__ void copy5(
    u32 to, const void* map, u32 barrier, int column, int octet, int head, bool both) {
    if (both) {
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%0], [%1, {%3, %6, %6, %4, %5}], [%2], %7;" :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(octet),
            "r"(head), "r"(0), "h"((Half)3) : "memory");
    } else {
        asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %6, %6, %4, %5}], [%2];" :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(octet),
            "r"(head), "r"(0) : "memory");
    }
}

// A swizzled tile of rows of 128 bytes, 8 of them to 1024, as the matrix instruction wants it described.
__device__ __forceinline__ u64 describe(u32 address) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;
}

// Four 8 x 8 matrices of halves, each lane with 2 of a row, stored as their columns: lane i names where column i goes.
__device__ __forceinline__ void store_columns(u32 to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
        :: "r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
"""

LOOP = r"""
// What a block works on: its first weight row (of pairs, counted in rows of both), first token, and its part of K.
struct Tile { int row, token, split, step, steps; };

// The tile of block `rank` of unit `unit`: tokens change fastest, so that blocks side by side read the same weights.
__device__ __forceinline__ Tile tile_of(int unit, int rank) {
    int token = unit % TOKEN_UNITS, row = unit / TOKEN_UNITS % WEIGHT_UNITS;
    int split = unit / TOKEN_UNITS / WEIGHT_UNITS;
    if (SHARE_WEIGHT) token = token * 2 + rank;
    if (SHARE_X) row = row * 2 + rank;
    int step = split * SPAN;
    return {row * TILE_M, token * TILE_N, split, step, min(SPAN, STEPS - step)};
}

// Where the copying warp stands in the flat sequence of its steps.
struct Cursor {
    int unit, step, slot, parity, turn, rank, stride;
    Tile tile;
    __device__ __forceinline__ Cursor(int first, int rank, int stride)
        : unit(first), step(0), slot(0), parity(0), turn(0), rank(rank), stride(stride), tile(tile_of(first, rank)) {}
    __device__ __forceinline__ bool at_end() const { return unit >= UNITS; }
    __device__ __forceinline__ void advance() {
        turn ^= 1;
        if (++slot == STAGES) { slot = 0; parity ^= 1; }
        if (++step == tile.steps) { step = 0; unit += stride; tile = tile_of(unit, rank); }
    }
    __device__ __forceinline__ int column() const { return (tile.step + step) * 64; }
    // Two blocks take turns to copy what both need.
    __device__ __forceinline__ bool copies(bool shared) const { return !shared || turn == rank; }
};

constexpr int OCTETS = HALF > 0 ? HALF / 8 : 1;

__device__ __forceinline__ void copy_weight(const Cursor& at, const void* map, u32 ring, u32 full) {
    if (!at.copies(SHARE_WEIGHT)) return;
    u32 to = ring + at.slot * STAGE_BYTES, barrier = full + at.slot * 8;
    #pragma unroll
    for (int row = 0; row < TILE_M; row += BOX_ROWS) {
        int octet = (at.tile.row + row) / 16;
        if (HALF == 0) copy2(to + row * 128, map, barrier, at.column(), at.tile.row + row, SHARE_WEIGHT);
        else copy5(to + row * 128, map, barrier, at.column(), octet % OCTETS, octet / OCTETS, SHARE_WEIGHT);
    }
}

__device__ __forceinline__ void copy_x(const Cursor& at, const void* map, u32 ring, u32 full) {
    if (!at.copies(SHARE_X)) return;
    copy2(ring + at.slot * STAGE_BYTES + WEIGHT_BYTES, map, full + at.slot * 8, at.column(), at.tile.token, SHARE_X);
}

__device__ __forceinline__ void wait_for_predecessor() {
    if (PDL) asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void release_successor() {
    if (PDL) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ void copy_all(
    const void* x, const void* weight, u32 ring, u32 full, u32 empty, int first, int rank, int stride) {
    asm volatile("prefetch.tensormap [%0]; prefetch.tensormap [%1];" :: "l"(x), "l"(weight) : "memory");
    Cursor weights(first, rank, stride);
    int ahead = 0;
    for (; PDL && ahead < STAGES && !weights.at_end(); ++ahead, weights.advance()) {
        expect(full + weights.slot * 8, STAGE_BYTES);
        copy_weight(weights, weight, ring, full);
    }
    int left = -ahead;
    for (int unit = first; unit < UNITS; unit += stride) left += tile_of(unit, rank).steps;
    if (left <= LEAD) release_successor();
    wait_for_predecessor();
    Cursor at(first, rank, stride);
    for (; ahead > 0; --ahead, at.advance()) copy_x(at, x, ring, full);
    for (; !at.at_end(); at.advance()) {
        if (left-- == LEAD + 1) release_successor();
        wait(empty + at.slot * 8, at.parity ^ 1);
        expect(full + at.slot * 8, STAGE_BYTES);
        copy_weight(at, weight, ring, full);
        copy_x(at, x, ring, full);
    }
    // A block must not end while the other of its cluster may still arrive at its barriers.
    for (int slot = 0; CLUSTER > 1 && slot < STAGES; ++slot, at.advance()) wait(empty + at.slot * 8, at.parity ^ 1);
}

// Lane 0 of each warp says to every block of the cluster that this warp has done with the slot.
__device__ __forceinline__ void release(u32 empty, int slot) {
    if (threadIdx.x % 32 < CLUSTER) arrive(empty + slot * 8, threadIdx.x % 32);
}

template <typename Finish>
__device__ __forceinline__ void multiply_all(
    u32 ring, u32 full, u32 empty, int first, int rank, int stride, int count, char* room, Finish finish) {
    Sums sums;
    #pragma unroll
    for (int s = 0; s < SLABS; ++s)
        #pragma unroll
        for (int i = 0; i < TILE_N / 2; ++i) sums[s][i] = 0.0f;
    int slot = 0, parity = 0;
    u32 rows = threadIdx.x / 128 * SLABS * 64 * 128;
    for (int unit = first; unit < UNITS; unit += stride) {
        Tile tile = tile_of(unit, rank);
        int before = 0;
        for (int step = 0; step < tile.steps; ++step) {
            wait(full + slot * 8, parity);
            u32 stage = ring + slot * STAGE_BYTES;
            u64 a = describe(stage + rows), b = describe(stage + WEIGHT_BYTES);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
            #pragma unroll
            for (int k = 0; k < 4; ++k)
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) multiply(sums[s], a + s * 512 + k * 2, b + k * 2, step | k);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (step > 0) release(empty, before);
            before = slot;
            if (++slot == STAGES) { slot = 0; parity ^= 1; }
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        release(empty, before);
        finish(sums, tile, count, room);
    }
}

template <typename Finish>
__device__ __forceinline__ void run(
    const CUtensorMap* x, const CUtensorMap* weight, const int* length, Finish finish) {
    extern __shared__ char shared[];
    u32 start = shared_address(shared), ring = (start + 1023) / 1024 * 1024;
    char* room = shared + (ring - start) + STAGES * STAGE_BYTES;
    u32 full = ring + STAGES * STAGE_BYTES + OWN_BYTES, empty = full + STAGES * 8;
    int rank = blockIdx.x % CLUSTER, first = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            make_barrier(full + i * 8, 1);
            make_barrier(empty + i * 8, WARPGROUPS * 4 * CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (CLUSTER > 1) meet_cluster();
    if (threadIdx.x >= WARPGROUPS * 128) {
        if (MOVES) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(KEPT));
        if (threadIdx.x == WARPGROUPS * 128) copy_all(x, weight, ring, full, empty, first, rank, stride);
        else wait_for_predecessor();
        __syncwarp();
    } else {
        if (MOVES) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(GIVEN));
        wait_for_predecessor();
        multiply_all(ring, full, empty, first, rank, stride, *length, room, finish);
    }
}
"""

PAIRS = r"""
constexpr int ALL_OCTETS = ROWS / 16;
constexpr int TILE_OCTETS = TILE_M / 16;

// The octet of pairs that this warp holds in slab `slab` of its warpgroup, and the first octet of the warpgroup.
__device__ __forceinline__ int first_octet(const Tile& tile) { return tile.row / 16 + threadIdx.x / 128 * SLABS * 4; }
__device__ __forceinline__ int my_octet(const Tile& tile, int slab) {
    return first_octet(tile) + slab * 4 + threadIdx.x % 128 / 32;
}

// Stores what `compute` makes of pairs, token by token. A pair is rows r and r + 8 of a slab, so one thread has both.
// ready(first): loads what `compute` needs for the 32 tokens from `first` of the tile on, one round ahead.
// compute(slab, i, to): for tokens 2 * (lane % 4) and the next of 8 tokens from 8 * i on, packed, OUTPUTS of them.
// place(token, octet, output): where 8 neighbouring numbers go, or null.
template <int OUTPUTS, typename Ready, typename Compute, typename Place>
__device__ __forceinline__ void finish_pairs(
    const Tile& tile, int count, char* room, Ready ready, Compute compute, Place place) {
    constexpr int PIECES = OUTPUTS * SLABS * 4, PITCH = PIECES * 16 + 16;
    const int group = threadIdx.x / 128, mine = threadIdx.x % 128, lane = mine % 32;
    ready(0);
    #pragma unroll
    for (int first = 0; first < TILE_N; first += 32) {
        char* buffer = room + group * 32 * PITCH;
        #pragma unroll
        for (int s = 0; s < SLABS; ++s) {
            u32 packed[OUTPUTS][4];
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32 made[OUTPUTS] = {};
                if (first + i * 8 < TILE_N) compute(s, first / 8 + i, made);
                #pragma unroll
                for (int o = 0; o < OUTPUTS; ++o) packed[o][i] = made[o];
            }
            #pragma unroll
            for (int o = 0; o < OUTPUTS; ++o)
                store_columns(shared_address(buffer) + lane * PITCH + ((o * SLABS + s) * 4 + mine / 32) * 16,
                    packed[o][0], packed[o][1], packed[o][2], packed[o][3]);
        }
        if (first + 32 < TILE_N) ready(first + 32);
        meet(1 + group, 128);
        for (int i = mine; i < 32 * PIECES; i += 128) {
            int line = i / PIECES, piece = i % PIECES, token = tile.token + first + line;
            int octet = first_octet(tile) + piece % (SLABS * 4);
            bool counts = octet < ALL_OCTETS && octet < tile.row / 16 + TILE_OCTETS;
            if (first + line < TILE_N && token < count && counts)
                *(uint4*)place(token, octet, piece / (SLABS * 4)) = *(const uint4*)(buffer + line * PITCH + piece * 16);
        }
        meet(1 + group, 128);
    }
}
"""
