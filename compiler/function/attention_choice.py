"""Which kernel computes attention?"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from hjgc.compiler.function.choice import Limits, chooses, given, grid_blocks, inputs, strides, usual
from hjgc.compiler.kernels.declaration import ABSENT, DTYPES, AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.kernels.tiles_of_functions import PROCESSORS, USUAL_PROCESSORS
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.sizes import Expression

WIDEST_UNIT = 16
Place = tuple[Expression, Expression, Expression, Expression]
"""Strides of a batch, a head and a row, and where the first head begins."""


@chooses("attention_rows")
def choose_attention_rows(step: Step, target: str, limits: Limits) -> Choice:
    attributes = step.attributes
    heads, groups, size = (int(attributes[name]) for name in ("heads", "groups", "size"))  # type: ignore[arg-type] (numbers)
    columns: Sequence[int] = attributes["columns"]  # type: ignore[assignment] (numbers, as the op declares it)
    query, key, *_ = given(step)
    places = [_in_rows(tensor, size, first) for tensor, first in zip(given(step)[:3], columns, strict=True)]
    places.append(_in_rows(step.operands["y0"], size, 0))
    batch, rows = query.shape[:2]
    shape = (batch, heads, rows, key.shape[1])
    causal, guarded = bool(attributes["causal"]), bool(attributes["guarded"])
    return _choice(step, target, limits, places, shape, groups, (size, size), causal=causal, guarded=guarded)


@chooses("scaled_attention")
def choose_scaled_attention(step: Step, target: str, limits: Limits) -> Choice:
    attributes, operands = step.attributes, inputs(step)
    plain = attributes["softcap"] == 0 and attributes["left"] == -1 and attributes["right"] == -1
    if not plain or "y1" in step.operands or any(operand is not None for operand in operands[4:]):
        raise NoTemplate("no kernel computes attention with windows, lengths, a soft cap or its scores")
    query, key, value, *_ = operands
    assert query is not None and key is not None and value is not None, "as the op declares it"
    batch, heads, rows, size = query.shape
    _, groups, keys, width = value.shape
    mask = step.operands.get("x3")
    keys = keys if mask is None or not mask.shape else mask.shape[-1]  # those past the mask are not seen
    if not all(isinstance(number, int) for number in (heads, groups, size, width)):
        raise NoTemplate("expected heads of fixed sizes")
    places = [_in_heads(tensor) for tensor in (query, key, value, step.operands["y0"])]
    assert isinstance(heads, int) and isinstance(groups, int) and isinstance(size, int) and isinstance(width, int)
    shape, causal = (batch, heads, rows, keys), bool(attributes["causal"])
    return _choice(step, target, limits, places, shape, groups, (size, width), causal=causal, guarded=True)


def _in_rows(tensor: Tensor, size: int, first: int) -> Place:
    width = tensor.shape[2]
    return dims.mul(tensor.shape[1], width), size, width, first


def _in_heads(tensor: Tensor) -> Place:
    batch, head, row, _ = strides(tensor.shape)
    return batch, head, row, 0


def _choice(
    step: Step,
    target: str,
    limits: Limits,
    places: Sequence[Place],
    shape: tuple[Expression, int, Expression, Expression],
    groups: int,
    sizes: tuple[int, int],
    *,
    causal: bool,
    guarded: bool,
) -> Choice:
    batch, heads, rows, keys = shape
    query, mask = step.operands["x0"], step.operands.get("x3")
    size, width = sizes
    if query.dtype not in DTYPES or max(sizes) > 256 or (query.dtype == "float32" and max(sizes) > 128):
        raise NoTemplate(f"no kernel computes attention of {query.dtype} with heads of {max(sizes)}")
    if mask is not None and mask.dtype not in ("bool", *DTYPES):
        raise NoTemplate(f"no kernel computes attention with a mask of {mask.dtype}")
    tile = _tile(target, max(1, limits(batch)[0]) * heads, usual(limits, rows), max(sizes), query.dtype)
    if limits(grid_blocks(rows, int(tile["block_m"])))[1] > 65535:
        raise NoTemplate("expected fewer queries")
    unit = _unit(places)
    mask_place, mask_keys = _mask_strides(mask)
    mask_unit = _unit([mask_place])
    axes: dict[str, AxisValue] = {
        "dtype": query.dtype,
        "size": size,
        "width": width,
        "unit": unit,
        "causal": causal,
        "mask": ABSENT if mask is None else mask.dtype,
        "mask_unit": mask_unit,
        "mask_keys": mask_keys,
        "guarded": guarded,
        **tile,
        "pdl": has_pdl(target),
    }
    letters: dict[str, Expression] = {
        "batches": batch,
        "heads": heads,
        "shared_by": heads // groups,
        "rows": rows,
        "keys": keys,
        "programs": grid_blocks(dims.mul(batch, heads), 1),
        "tiles": grid_blocks(rows, int(tile["block_m"])),
    }
    for axis, stride in zip(("batch", "head", "row"), mask_place, strict=False):
        letters[f"mask_{axis}"] = _in_units(stride, mask_unit)
    for name, place in zip(("query", "key", "value", "result"), places, strict=True):
        for axis, stride in zip(("batch", "head", "row", "first"), place, strict=True):
            letters[f"{name}_{axis}"] = _in_units(stride, unit)
    return Choice("tensor_attention", axes, letters)


def _mask_strides(mask: Tensor | None) -> tuple[Place, bool]:
    """In elements, of batch, head and row, 0 along axes that the mask is broadcast over; and whether each key has its
    own."""
    if mask is None:
        return (0, 0, 0, 0), False
    axes = [*[1] * (4 - len(mask.shape)), *mask.shape]
    batch, head, row, _ = (0 if axis == 1 else stride for axis, stride in zip(axes, strides(axes), strict=True))
    return (batch, head, row, 0), axes[3] != 1


def _unit(places: Sequence[Place]) -> int:
    """The widest unit that every stride and offset is a multiple of."""
    found = WIDEST_UNIT
    for place in places:
        for stride in place:
            while found > 1 and dims.divide(stride, found) is None:
                found //= 2
    return gcd(found, WIDEST_UNIT)


def _in_units(stride: Expression, unit: int) -> Expression:
    found = dims.divide(stride, unit)
    assert found is not None, "a multiple of the unit"
    return found


def _tile(target: str, heads: int, rows: int, size: int, dtype: str) -> dict[str, AxisValue]:
    """As many rows a program as leave programs for most multiprocessors; `heads` are those of the whole batch."""
    wide = dtype == "float32"
    enough = PROCESSORS.get(target, USUAL_PROCESSORS)
    most = 32 if wide or size > 64 else 64
    fitting = (rows_of for rows_of in (64, 32) if rows_of <= most and heads * -(-rows // rows_of) >= enough)
    block_n = 32 if wide or size > 128 else 64 if size > 64 else 128
    return {"block_m": next(fitting, 16), "block_n": block_n, "stages": 2, "warps": 4}
