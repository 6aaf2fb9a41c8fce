"""Which tiles of the Hopper templates suit how many rows of a prompt?

A range of row counts has one choice, so that a prompt's bits depend on its length alone. Measured on an H200 over whole
passes of LLaMA-2-7B in fp16 (`tests/gpu/measure_hopper.py`); other shapes get what a model of the chip prefers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache

from hjgc.compiler.kernels import hopper_attention_inputs, hopper_gated_linear, hopper_linear_parts
from hjgc.compiler.kernels.declaration import Axes, AxisValue, Template
from hjgc.compiler.kernels.hopper_product import (
    DEPTH,
    ITEM,
    OCTET,
    SLAB,
    multiplied_rows,
    tile_rows,
    token_tiles,
    weight_tiles,
)
from hjgc.compiler.kernels.tiles import Dims, ring

RANGES = (
    *(16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 208, 224, 256),
    *(272, 304, 352, 376, 400, 448, 480, 512),
)
"""The last row count of each range. Measured beside the Triton templates, these are ahead in every one."""

TEMPLATES: Mapping[str, Template] = {
    "attention_inputs": hopper_attention_inputs.TEMPLATE,
    "gated_linear": hopper_gated_linear.TEMPLATE,
    "linear_parts": hopper_linear_parts.TEMPLATE,
}
BLOCKS = 132
"""Multiprocessors of an H100 or H200 on SXM. On a chip with fewer the rest of the blocks wait for a place."""
MOST_STAGES = 12
MOST_SPLITS = 8
CLOCK, MEMORY, CACHE, ARRIVING = 1600.0, 4.2e6, 6e6, 45.0
"""Of the model: clocks a microsecond; bytes a microsecond from memory and from the L2 cache; bytes a clock that reach
one multiprocessor."""


def range_of(rows: int) -> int:
    """The range that serves a call of so many rows; a call of more than the last has a range of its own."""
    return next((top for top in RANGES if rows <= top), rows)


def choose_hopper(
    op: str, dims: Dims, dtype: str, roles: Collection[str], rows: int, capacity: int
) -> tuple[str, dict[str, AxisValue]] | None:
    """The template and its axes for a step of up to `rows` rows, x (and each of the parts) being in a buffer of
    `capacity` rows. `dims` holds the op's letters; `roles` those that have an operand. None where another template must
    serve: another op, x not yet normalised, sizes that tensor maps cannot say or that the template does not take."""
    if op not in TEMPLATES or "norm_weight" in roles:
        return None
    tokens = min(range_of(rows), capacity)
    shape = _SHAPES[op](dims, roles) | {"dtype": dtype, "row_capacity": capacity, "tokens": tokens}
    if not all(TEMPLATES[op].axes[name].allows(value) for name, value in shape.items()):
        return None
    tile = _measured(op, shape, tokens) or _preferred(op, tuple(sorted(shape.items())))
    return None if tile is None else (f"hopper_{op}", {**shape, **tile})


def splits(rows: int, outputs: int, columns: int, capacity: int) -> int | None:
    """Into how many parts the sum of such a product is cut; None where another template must serve."""
    found = choose_hopper("linear_parts", {"N": outputs, "K": columns}, "float16", (), rows, capacity)
    return None if found is None else int(found[1]["splits"])


def other_tiles(op: str, axes: Axes, most: int = 8) -> list[dict[str, AxisValue]]:
    """For the same shape the tiles that the model likes best: to measure."""
    legal = [tile for tile in _candidates(op, axes) if TEMPLATES[op].refuse({**axes, **tile}) is None]
    return sorted(legal, key=lambda tile: _microseconds({**axes, **tile}))[:most]


def _attention_inputs(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    sizes = {"heads": dims["Q"], "kv_heads": dims["G"], "head_size": dims["D"], "capacity": dims["C"]}
    flags = {"bias": "bias" in roles, "head_norm": "query_norm" in roles}
    return {"rows": dims["N"], "columns": dims["H"], **sizes, **ring(dims), **flags}


def _gated_linear(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    return {"rows": dims["N"], "columns": dims["H"], "bias": "bias" in roles}


def _linear_parts(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    del roles
    return {"rows": dims["N"], "columns": dims["K"]}


_SHAPES = {"attention_inputs": _attention_inputs, "gated_linear": _gated_linear, "linear_parts": _linear_parts}


def _tile(
    warpgroups: int, slabs: int, block_n: int, stages: int, share: str, lead: int, splits: int = 0, height: int = 0
) -> dict[str, AxisValue]:
    sizes = {"warpgroups": warpgroups, "slabs": slabs, "height": height, "block_n": block_n, "stages": stages}
    rest: dict[str, AxisValue] = {"share": share, "blocks": BLOCKS, "resident": 1, "lead": lead}
    return sizes | rest | {"pdl": True} | ({"splits": splits} if splits else {})


def _measured(op: str, shape: Axes, tokens: int) -> Axes | None:
    """What was measured for this shape, where it is legal."""
    found = H200.get((op, int(shape["rows"]), int(shape["columns"])), {}).get(range_of(tokens))
    return None if found is None or TEMPLATES[op].refuse({**shape, **found}) else found


@cache
def _preferred(op: str, shape: tuple[tuple[str, AxisValue], ...]) -> Axes | None:
    """The tile with the shortest time by the model, the first of equals; None if none is legal."""
    axes = dict(shape)
    legal = [tile for tile in _candidates(op, axes) if TEMPLATES[op].refuse({**axes, **tile}) is None]
    return min(legal, key=lambda tile: _microseconds({**axes, **tile}), default=None)


def _candidates(op: str, axes: Axes) -> Iterator[dict[str, AxisValue]]:
    tokens = int(axes["tokens"])
    least = _ceil(tokens, 256)
    lead = 8 if tokens <= 256 else 0
    for warpgroups, slabs in ((2, 1), (3, 1), (2, 2), (1, 1), (1, 2), (2, 3), (3, 2)):
        for tiles in range(least, least + 3):
            block_n = _ceil(_ceil(tokens, tiles), 8) * 8
            for share in ("none", "x", "weight"):
                for cut in range(1, MOST_SPLITS + 1) if op == "linear_parts" else (0,):
                    for height in _heights(int(axes["rows"]), warpgroups * slabs * SLAB, tiles * max(cut, 1)):
                        stages = _stages(op, {**axes, **_tile(warpgroups, slabs, block_n, 2, share, lead, cut, height)})
                        yield _tile(warpgroups, slabs, block_n, stages, share, lead, cut, height)


def _heights(rows: int, most: int, others: int) -> Iterator[int]:
    """All rows of the tile, and as few as deal `rows` out evenly over the blocks, `others` of which share each tile."""
    yield 0
    waves = _ceil(_ceil(rows, most) * others, BLOCKS)
    even = _ceil(_ceil(rows, max(1, waves * BLOCKS // others)), 2 * OCTET) * 2 * OCTET
    if most - SLAB < even < most:
        yield even


def _stages(op: str, axes: Axes) -> int:
    """As many as fit, if that is more than two."""
    fitting = (n for n in range(MOST_STAGES, 2, -1) if TEMPLATES[op].refuse({**axes, "stages": n}) is None)
    return next(fitting, 2)


def _microseconds(axes: Axes) -> float:
    """Tensor cores, shared memory and what arrives there by the clock, the weights from memory, parts to and from the
    cache."""
    rows, tokens, cut = multiplied_rows(axes), int(axes["block_n"]), int(axes.get("splits", 1))
    steps = _ceil(_ceil(int(axes["columns"]), DEPTH), cut)
    instructions, arriving = int(axes["warpgroups"]) * int(axes["slabs"]), tile_rows(axes) + tokens
    clocks = max(rows * tokens / 32, instructions * (64 + tokens) + arriving, arriving * DEPTH * ITEM / ARRIVING)
    waves = _ceil(weight_tiles(axes) * token_tiles(axes) * cut, BLOCKS)
    sums = waves * (steps * clocks / CLOCK + 2)
    shared = {"none": 1.0, "x": 0.97, "weight": 0.95}[str(axes["share"])]
    weights = int(axes["rows"]) * int(axes["columns"]) * 2 / MEMORY
    parts = cut * int(axes["tokens"]) * int(axes["rows"]) * 8 / CACHE if "splits" in axes else 0
    return max(sums, weights) + 0.2 * min(sums, weights) * shared + parts


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


H200: Mapping[tuple[str, int, int], Mapping[int, Axes]] = {
    ("attention_inputs", 12288, 4096): {
        16: _tile(2, 1, 16, 12, "x", 8),
        32: _tile(2, 1, 32, 12, "none", 8, 0, 96),
        48: _tile(2, 1, 48, 9, "x", 8),
        64: _tile(2, 1, 64, 10, "x", 8, 0, 96),
        80: _tile(3, 1, 40, 7, "weight", 8),
        96: _tile(2, 1, 96, 9, "none", 8, 0, 96),
        112: _tile(3, 1, 56, 6, "weight", 8),
        128: _tile(2, 1, 128, 6, "none", 8),
        144: _tile(2, 1, 144, 6, "x", 8),
        160: _tile(3, 1, 80, 6, "weight", 8),
        192: _tile(3, 1, 96, 5, "weight", 8),
        208: _tile(3, 1, 104, 5, "weight", 8),
        224: _tile(3, 1, 112, 5, "weight", 8),
        256: _tile(3, 1, 128, 5, "weight", 8),
        272: _tile(3, 1, 136, 5, "weight", 0),
        304: _tile(3, 1, 152, 4, "weight", 0),
        352: _tile(3, 1, 176, 4, "weight", 0),
        376: _tile(3, 1, 192, 4, "weight", 0),
        400: _tile(2, 3, 104, 3, "weight", 0),
        448: _tile(2, 3, 112, 3, "weight", 0),
        480: _tile(3, 1, 120, 5, "none", 0),
        512: _tile(3, 1, 128, 5, "weight", 0),
    },
    ("linear_parts", 4096, 4096): {
        16: _tile(1, 1, 16, 12, "x", 8, 2),
        32: _tile(2, 1, 32, 11, "none", 8, 4),
        48: _tile(1, 1, 48, 12, "x", 8, 2),
        64: _tile(1, 1, 64, 12, "x", 8, 2),
        80: _tile(1, 1, 80, 12, "x", 8, 2),
        96: _tile(1, 1, 96, 11, "x", 8, 2),
        112: _tile(1, 1, 112, 10, "x", 8, 2),
        128: _tile(1, 1, 128, 9, "x", 8, 2),
        144: _tile(1, 1, 144, 8, "x", 8, 2),
        160: _tile(2, 1, 80, 8, "weight", 8, 2),
        192: _tile(2, 1, 96, 8, "weight", 8, 2),
        208: _tile(2, 1, 208, 5, "x", 8, 4),
        224: _tile(1, 1, 224, 6, "x", 8, 2),
        256: _tile(2, 1, 128, 7, "weight", 8, 2),
        272: _tile(2, 1, 136, 6, "weight", 0, 2),
        304: _tile(2, 1, 152, 6, "weight", 0, 2),
        352: _tile(3, 1, 176, 4, "weight", 0, 3),
        376: _tile(3, 1, 192, 4, "weight", 0, 3),
        400: _tile(1, 2, 104, 7, "weight", 0, 1),
        448: _tile(3, 1, 152, 5, "x", 0, 2),
        480: _tile(3, 1, 160, 5, "x", 0, 2),
        512: _tile(1, 2, 128, 7, "weight", 0, 1),
    },
    ("gated_linear", 22016, 4096): {
        16: _tile(3, 1, 16, 8, "none", 8),
        32: _tile(3, 1, 32, 8, "x", 8, 0, 176),
        48: _tile(3, 1, 48, 7, "none", 8),
        64: _tile(3, 1, 64, 6, "none", 8),
        80: _tile(3, 1, 80, 6, "none", 8),
        96: _tile(3, 1, 96, 6, "x", 8, 0, 176),
        112: _tile(3, 1, 112, 5, "none", 8),
        128: _tile(3, 1, 128, 5, "x", 8, 0, 176),
        144: _tile(3, 1, 144, 5, "none", 8),
        160: _tile(3, 1, 160, 4, "none", 8),
        192: _tile(3, 1, 192, 4, "none", 8),
        208: _tile(3, 1, 104, 6, "weight", 8, 0, 176),
        224: _tile(3, 1, 112, 5, "weight", 8),
        256: _tile(3, 1, 128, 5, "weight", 8),
        272: _tile(3, 1, 136, 5, "weight", 0),
        304: _tile(3, 1, 152, 5, "weight", 0),
        352: _tile(3, 1, 176, 4, "weight", 0),
        376: _tile(3, 1, 192, 4, "weight", 0),
        400: _tile(2, 2, 136, 4, "none", 0),
        448: _tile(2, 2, 152, 4, "x", 0),
        480: _tile(2, 2, 160, 4, "x", 0),
        512: _tile(2, 2, 176, 4, "x", 0),
    },
    ("linear_parts", 4096, 11008): {
        16: _tile(1, 2, 16, 12, "none", 8, 4),
        32: _tile(1, 2, 32, 11, "none", 8, 4),
        48: _tile(1, 1, 48, 12, "x", 8, 2),
        64: _tile(1, 1, 64, 12, "x", 8, 2),
        80: _tile(1, 1, 80, 12, "x", 8, 2),
        96: _tile(1, 1, 96, 11, "x", 8, 2),
        112: _tile(1, 1, 112, 10, "x", 8, 2),
        128: _tile(3, 1, 64, 7, "weight", 8, 3),
        144: _tile(3, 1, 72, 6, "weight", 8, 3),
        160: _tile(2, 1, 160, 6, "x", 8, 4),
        192: _tile(3, 1, 96, 6, "weight", 8, 3),
        208: _tile(2, 1, 208, 5, "x", 8, 4),
        224: _tile(3, 1, 112, 5, "weight", 8, 3),
        256: _tile(3, 1, 128, 5, "weight", 8, 3),
        272: _tile(2, 1, 136, 6, "weight", 0, 2),
        304: _tile(3, 1, 152, 5, "weight", 0, 3),
        352: _tile(3, 1, 176, 4, "weight", 0, 3),
        376: _tile(3, 1, 192, 4, "weight", 0, 3),
        400: _tile(2, 1, 200, 5, "weight", 0, 2),
        448: _tile(2, 1, 224, 5, "weight", 0, 2),
        480: _tile(3, 1, 160, 5, "x", 0, 2),
        512: _tile(2, 1, 256, 4, "x", 0, 2),
    },
}
"""By op, rows and columns of the weight, and range: warpgroups, slabs and tokens of a tile, stages, the operand that is
shared, lead, parts, height."""
