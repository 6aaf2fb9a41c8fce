"""How do many tokens meet a weight matrix on a Hopper chip: one persistent kernel fed by its copy engine?

The weight is the left operand of the matrix instruction (64 rows at a time), the tokens are the right one, so a tile
holds any multiple of 8 tokens. One warp copies tiles of both into a ring of shared memory, four warps each (a
warpgroup) multiply them and finish their own rows. Two blocks of a cluster may share the tile that both need: they
take turns to copy it into both. Every template is this text with a `finish` of its own.

Constant weights are copied before the wait for the predecessor, as many as the ring holds. Tiles and the order of every
sum are fixed by the axes, so a token's bits depend on them alone. Columns of tokens past the end may be anything: no
other column sees them, and they are not stored.

Tried on an H200 over whole passes and left out: calling later weights into the L2 cache (0.6 to 1.5 ms a pass dearer,
even a few copies ahead), blocks that begin their sums at different columns (nothing), two blocks a multiprocessor with
half the ring and an early trigger (0.8 ms dearer at 16 rows), three warpgroups by 256 tokens (the compiler refuses).
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from hjgc.compiler.kernels.declaration import (
    Axes,
    AxisValue,
    CudaFunction,
    Grid,
    OneOf,
    Parameter,
    TensorMap,
    Whole,
)

DEPTH = 64
"""Columns of a tile: 128 bytes, the widest swizzle."""
SLAB = 64
"""Weight rows of one matrix instruction."""
OCTET = 8
"""Rows, or pairs of rows, that lie together in a slab: pairs are 8 first rows and 8 second ones of each 16."""
WIDTH = 32
"""Tokens that are brought into token-major order at a time."""
ITEM = 2
SHARED_LIMIT = 227 << 10
EVEN_SHARE = {1: 255, 2: 112, 3: 80}
"""Registers that sums can take of an even share, by warpgroups."""
MOST_SUMS = {1: 192, 2: 192, 3: 96}
"""Registers that sums may take, by warpgroups: with three, the compiler refuses instructions that touch more."""
REGISTERS = {1: (24, 24), 2: (24, 240), 3: (32, 160)}
"""What the copying warps keep and the others get where registers move."""
MAX_BOX = 256

PRODUCT_AXES = {
    "dtype": OneOf(("float16", "bfloat16")),
    "rows": Whole(8, 1 << 20),
    "columns": Whole(8, 1 << 20),
    "row_capacity": Whole(1, 1 << 16),
    "tokens": Whole(1, 1 << 12),
    "block_n": OneOf(tuple(range(8, 257, 8))),
    "warpgroups": OneOf((1, 2, 3)),
    "slabs": OneOf((1, 2, 3, 4)),
    "height": Whole(0, 768),
    "stages": Whole(2, 16),
    "share": OneOf(("none", "x", "weight")),
    "blocks": Whole(2, 1 << 16),
    "resident": OneOf((1, 2, 3)),
    "lead": Whole(0, 1 << 12),
    "pdl": OneOf((False, True)),
}
"""The weight is [rows, columns], x lies in a buffer of `row_capacity` rows of which up to `tokens` count. A tile is
`warpgroups` x `slabs` x 64 weight rows by `block_n` tokens; or only the first `height` of those rows, if it is not 0,
so that rows can be dealt out evenly where memory sets the pace. `share`: which operand two blocks of a cluster share.
`blocks`: of the grid at most; `resident`: how many should fit on a multiprocessor, as far as registers go. The
successor may start once the last copies but `lead` of every block are on their way: only then is it worth its place."""


def multiplied_rows(axes: Axes) -> int:
    return int(axes["warpgroups"]) * int(axes["slabs"]) * SLAB


def tile_rows(axes: Axes) -> int:
    return int(axes["height"]) or multiplied_rows(axes)


def cluster(axes: Axes) -> int:
    return 1 if axes["share"] == "none" else 2


def token_tiles(axes: Axes) -> int:
    return -(-int(axes["tokens"]) // int(axes["block_n"]))


def weight_tiles(axes: Axes) -> int:
    tiles = -(-int(axes["rows"]) // tile_rows(axes))
    return -(-tiles // 2) * 2 if axes["share"] == "x" else tiles


def grid(letters: object, axes: Axes) -> Grid:
    """One block a multiprocessor, or fewer where there are fewer tiles: it depends on no size of the request."""
    del letters
    tiles = weight_tiles(axes) * token_tiles(axes) * int(axes.get("splits", 1))
    return min(tiles, int(axes["blocks"]) // cluster(axes) * cluster(axes)), 1, 1


def moves_registers(axes: Axes) -> bool:
    """Whether the sums need more registers than an even share: then the warps that copy give theirs away. Those are a
    whole warpgroup then, which costs no more than one warp: registers are shared out in quarters of the processor."""
    return int(axes["slabs"]) * int(axes["block_n"]) // 2 > EVEN_SHARE[int(axes["warpgroups"])]


def threads(axes: Axes) -> int:
    """The warpgroups that multiply, and the warps that copy."""
    return int(axes["warpgroups"]) * 128 + (128 if moves_registers(axes) else 32)


def stage_bytes(axes: Axes) -> int:
    return (tile_rows(axes) + int(axes["block_n"])) * DEPTH * ITEM


def shared_bytes(axes: Axes, own: int) -> int:
    """The ring, what `finish` needs for its own, two barriers a stage, and room to begin at a multiple of 1024; and as
    much behind the ring as is multiplied beyond its last tile."""
    stages = int(axes["stages"])
    beyond = (multiplied_rows(axes) - tile_rows(axes) - int(axes["block_n"])) * DEPTH * ITEM
    return 1024 + stages * stage_bytes(axes) + max(own + 16 * stages, beyond)


def staging_bytes(axes: Axes, halves: int) -> int:
    """For each warpgroup some tokens by its outputs, padded against bank conflicts; `halves` outputs a pair."""
    pitch = int(axes["slabs"]) * 4 * OCTET * ITEM * halves + 16
    return int(axes["warpgroups"]) * WIDTH * pitch


def refuse(axes: Axes, own: int) -> str | None:
    """Why axes that are legal one by one do not go together; `finish` needs `own` bytes of shared memory."""
    shared = shared_bytes(axes, own)
    if int(axes["rows"]) % 8 or int(axes["columns"]) % 8:
        return f"expected rows and columns that are multiples of 8, found {axes['rows']} and {axes['columns']}"
    if int(axes["height"]) % (2 * OCTET) or not 0 <= multiplied_rows(axes) - tile_rows(axes) < SLAB:
        return f"expected a height in multiples of {2 * OCTET} that needs every slab, found {axes['height']}"
    if tile_rows(axes) % (OCTET * boxes(axes)):
        return f"expected a height that {boxes(axes)} boxes of whole octets share, found {axes['height']}"
    if int(axes["tokens"]) > int(axes["row_capacity"]):
        return f"expected tokens up to row_capacity {axes['row_capacity']}, found {axes['tokens']}"
    if axes["share"] == "weight" and token_tiles(axes) % 2:
        return f"expected an even number of token tiles where two blocks share a weight, found {token_tiles(axes)}"
    if int(axes["block_n"]) * int(axes["slabs"]) // 2 > MOST_SUMS[int(axes["warpgroups"])]:
        return f"expected sums that fit the registers, found {axes['slabs']} slabs by {axes['block_n']} tokens"
    if shared > SHARED_LIMIT:
        return f"expected at most {SHARED_LIMIT} bytes of shared memory, found {shared}"
    return None


def map_of_x(axes: Axes) -> TensorMap:
    columns, capacity = int(axes["columns"]), int(axes["row_capacity"])
    return TensorMap((columns, capacity), (columns * ITEM,), (DEPTH, int(axes["block_n"])), DEPTH * ITEM)


def boxes(axes: Axes) -> int:
    """How many boxes bring a tile of the weight."""
    return -(-tile_rows(axes) // MAX_BOX)


def map_of_rows(axes: Axes) -> TensorMap:
    """The weight as it is."""
    columns = int(axes["columns"])
    box = (DEPTH, tile_rows(axes) // boxes(axes))
    return TensorMap((columns, int(axes["rows"])), (columns * ITEM,), box, DEPTH * ITEM)


def pair_box(axes: Axes, half: int) -> tuple[int, int]:
    """Octets of one half, and heads, that a box of paired rows covers, for heads of two halves of `half` rows."""
    octets, wanted = half // OCTET, tile_rows(axes) // (2 * OCTET)
    if int(axes["rows"]) == 2 * half:
        return wanted, 1
    together = gcd(octets, wanted)
    return together, wanted // together if together == octets else 1


def map_of_pairs(axes: Axes, half: int) -> TensorMap:
    """The weight as heads of two halves of `half` rows, 8 rows of the first half next to their partners: column, row of
    8, half, octet, head."""
    columns, heads = int(axes["columns"]), int(axes["rows"]) // (2 * half)
    line = columns * ITEM
    octets, several = pair_box(axes, half)
    sizes = (columns, OCTET, 2, half // OCTET, heads)
    return TensorMap(
        sizes, (line, half * line, OCTET * line, 2 * half * line), (DEPTH, OCTET, 2, octets, several), DEPTH * ITEM
    )


def constants(axes: Axes, half: int, own: int) -> dict[str, AxisValue]:
    """The constants of the loop; `half` is 0 where rows are not paired."""
    octets, several = pair_box(axes, half) if half else (0, 0)
    steps = -(-int(axes["columns"]) // DEPTH)
    splits = int(axes.get("splits", 1))
    span = -(-steps // splits)
    return {
        "ROWS": axes["rows"],
        "CAPACITY_ROWS": axes["row_capacity"],
        "TILE_M": tile_rows(axes),
        "TILE_N": axes["block_n"],
        "WARPGROUPS": axes["warpgroups"],
        "SLABS": axes["slabs"],
        "STAGES": axes["stages"],
        "CLUSTER": cluster(axes),
        "SHARE_X": axes["share"] == "x",
        "SHARE_WEIGHT": axes["share"] == "weight",
        "WEIGHT_TILES": weight_tiles(axes),
        "TOKEN_TILES": token_tiles(axes),
        "SPLITS": splits,
        "STEPS": steps,
        "SPAN": span,
        "HALF": half,
        "OWN_BYTES": own,
        "BOX_ROWS": octets * several * 2 * OCTET if half else tile_rows(axes) // boxes(axes),
        "THREADS": threads(axes),
        "MOVES": moves_registers(axes),
        "KEPT": REGISTERS[int(axes["warpgroups"])][0],
        "GIVEN": REGISTERS[int(axes["warpgroups"])][1],
        "RESIDENT": axes["resident"],
        "PDL": axes["pdl"],
        "LEAD": axes["lead"],
    }


def cuda_function(
    name: str, finish: str, parameters: tuple[Parameter, ...], own: Callable[[Axes], int]
) -> CudaFunction:
    """The kernel `name`: the loop with this `finish`, which needs `own` bytes of shared memory."""
    return CudaFunction(
        entry=name,
        text=lambda axes: _text(name, finish, parameters, axes),
        threads=threads,
        shared_bytes=lambda axes: shared_bytes(axes, own(axes)),
    )


def _text(name: str, finish: str, parameters: tuple[Parameter, ...], axes: Axes) -> str:
    signature = ", ".join(_declared(parameter) for parameter in parameters if parameter.is_present(axes))
    missing = "".join(f"    {_absent(p)};\n" for p in parameters if not p.is_present(axes))
    given = "".join(f", {p.name}" for p in parameters if p.source != "tensor_map" and p.name != "length")
    kind = "f16" if axes["dtype"] == "float16" else "bf16"
    dims = "__cluster_dims__(2, 1, 1) " if cluster(axes) == 2 else ""
    return (
        f"#define CONVERT_{kind.upper()}\n{BASICS}{_multiply(int(axes['block_n']), kind)}{LOOP}{finish}\n"
        f'extern "C" __global__ void {dims}__launch_bounds__(THREADS, RESIDENT) {name}({signature}) {{\n'
        f"{missing}"
        "    run(&x, &weight, length, [&](Sums& sums, const Tile& tile, int count, char* room) {\n"
        f"        finish(sums, tile, count, room{given});\n"
        "    });\n}\n"
    )


C_TYPES = {"float32": "float", "int32": "int"}


def _c_type(parameter: Parameter) -> str:
    return C_TYPES.get(parameter.dtype, "Half")


def _declared(parameter: Parameter) -> str:
    match parameter.source:
        case "tensor_map":
            return f"const __grid_constant__ CUtensorMap {parameter.name}"
        case "attribute":
            return f"{_c_type(parameter)} {parameter.name}"
        case _:
            return f"{_c_type(parameter)}* __restrict__ {parameter.name}"


def _absent(parameter: Parameter) -> str:
    kind = _c_type(parameter)
    return f"const {kind} {parameter.name} = 0" if parameter.source == "attribute" else f"{kind}* {parameter.name} = 0"


def _multiply(tokens: int, kind: str) -> str:
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
