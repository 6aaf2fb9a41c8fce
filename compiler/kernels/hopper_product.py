"""How do many tokens meet a weight matrix on a Hopper chip: one persistent kernel fed by its copy engine?

The weight is the left operand of the matrix instruction (64 rows at a time), the tokens are the right one, so a tile
holds any multiple of 8 tokens. One warp copies tiles of both into a ring of shared memory, four warps each (a
warpgroup) multiply them and finish their own rows. Two blocks of a cluster may share the tile that both need: they
take turns to copy it into both. Every template is one text (`hopper_text`) with a `finish` of its own.

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
from hjgc.compiler.kernels.hopper_text import BASICS, LOOP, multiply

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
        f"#define CONVERT_{kind.upper()}\n{BASICS}{multiply(int(axes['block_n']), kind)}{LOOP}{finish}\n"
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
