"""Which template, with which axes, does hjgc choose for a step of a prompt, for each range of row counts?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hjgc.compiler.kernels import hopper_tiles
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.compiler.kernels.prefill_tiles import RANGES, Tile, tiles
from hjgc.compiler.kernels.tiles import Dims, choose_decode, ring, window
from hjgc.plan_format.chips import HOPPER, PORTABLE
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import DTypes

RANGED = frozenset({"attention_inputs", "attention", "linear_parts", "join", "gated_linear"})
"""Ops whose tiles depend on the rows; the others have one choice for all."""


@dataclass(frozen=True)
class Choice:
    """A template and the axes that it is built with; of a tensor op also the sizes that its kernel takes and its grid
    is written over, and `roles`, which of the op's operands a parameter of another name takes."""

    template: str
    axes: Mapping[str, AxisValue]
    letters: Mapping[str, Expression] | None = None
    roles: Mapping[str, str] = field(default_factory=dict[str, str])


def range_ends(target: str, most: int) -> tuple[int, ...]:
    """The last row count of each range, for calls of up to `most` rows."""
    if target == PORTABLE:  # its tiles hardly differ with the rows, and every variant costs room in the plan
        return (most,)
    ends = hopper_tiles.RANGES if target == HOPPER else RANGES
    return (*(end for end in ends if end < most), most)


def splits(target: str, rows: int, outputs: int, columns: int, most: int) -> int:
    """Into how many parts the sum of such a product is cut, in the range of so many rows of at most `most`."""
    found = hopper_tiles.splits(rows, outputs, columns, most) if target == HOPPER else None
    return found or int(tiles(rows, target)[_product_step(outputs, columns)]["splits"])


def choose_prefill(
    op: str, dims: Dims, dtypes: DTypes, roles: Collection[str], target: str, rows: int, most: int, parts: int
) -> Choice:
    """For a step of up to `rows` rows (the end of a range), of at most `most` in any call. `dims` holds the op's
    letters; `roles` the roles that have an operand; `parts` how many parts a `join` adds up. Raises NoTemplate."""
    if op not in RANGED:
        return Choice(*choose_decode(op, {**dims, "M": 0}, dtypes, roles, target))
    if target == HOPPER:
        found = hopper_tiles.choose_hopper(op, dims, dtypes.compute, roles, rows, most)
        if found is not None:
            return Choice(*found)
    axes = _AXES[op](dims, roles)
    if op == "join":
        axes["splits"] = parts
    step = _product_step(dims["N"], dims["K"]) if op == "linear_parts" else op
    tile = tiles(rows, target)[step]
    if axes.get("head_norm") is True:
        tile = _of_whole_heads(tile, dims["D"])
    if op == "attention" and target != HOPPER:
        tile = _of_wide_heads(tile, dims["D"])
    # Between Hopper's products every kernel waits by itself: a full edge would undo that for its neighbours too.
    early = {"pdl": True} if target == HOPPER else {}
    return Choice(f"prefill_{op}", {**axes, "dtype": dtypes.compute, **tile, **early})


def _of_whole_heads(tile: Tile, head_size: int) -> Tile:
    """The tile, or one as wide as heads need that are normalised where they are made: no head may straddle pieces."""
    head = 1 << (head_size - 1).bit_length()
    if int(tile["block_n"]) % head == 0 and int(tile["extra_n"]) % head == 0:
        return tile
    return {**tile, "block_m": 64, "extra_m": 0, "block_n": max(64, head), "extra_n": 0, "stages": 3, "swap": False}


def _of_wide_heads(tile: Tile, head_size: int) -> Tile:
    """The tile, or one of fewer rows where heads are so wide that it would not fit the shared memory of every chip."""
    width = 1 << (head_size - 1).bit_length()
    limits = {"block_m": 8192 // width, "block_n": 16384 // width}
    return {**tile, **{axis: min(int(tile[axis]), limit) for axis, limit in limits.items()}}


def _product_step(outputs: int, columns: int) -> str:
    """What the table of tiles calls a product of this shape."""
    return "down" if columns > outputs else "output"


def _attention_inputs(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    flags = {"norm": "norm_weight" in roles, "bias": "bias" in roles, "head_norm": "query_norm" in roles}
    return {**_cache(dims), **ring(dims), "rows": dims["N"], "columns": dims["H"], **flags}


def _attention(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    del roles
    return {**_cache(dims), **window(dims)}


def _linear_parts(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    del roles
    return {"rows": dims["N"], "columns": dims["K"], "row_capacity": dims["R"]}


def _join(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    flags = {"bias": "bias" in roles, "residual": "residual" in roles, "norm": "norm_weight" in roles}
    return {"columns": dims["N"], "row_capacity": dims["R"], **flags}


def _gated_linear(dims: Dims, roles: Collection[str]) -> dict[str, AxisValue]:
    return {"rows": dims["N"], "columns": dims["H"], "norm": "norm_weight" in roles, "bias": "bias" in roles}


def _cache(dims: Dims) -> dict[str, AxisValue]:
    return {"heads": dims["Q"], "kv_heads": dims["G"], "head_size": dims["D"], "capacity": dims["C"]}


_AXES = {
    "attention_inputs": _attention_inputs,
    "attention": _attention,
    "linear_parts": _linear_parts,
    "join": _join,
    "gated_linear": _gated_linear,
}
