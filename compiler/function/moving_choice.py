"""Which kernel computes, or moves, elements one by one?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hjgc.compiler.function.choice import Limits, chooses, given, strides
from hjgc.compiler.function.tiling import (
    WARPS,
    Axis,
    Tile,
    Words,
    axes_of,
    broadcast_strides,
    check_letters,
    merged,
    rows_and_columns,
    turned,
)
from hjgc.compiler.kernels.declaration import ABSENT, AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step
from hjgc.plan_format import dims
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.elementwise import number
from hjgc.plan_format.sizes import Expression

MOST_OPERANDS = 8
MOVED = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
"""The type, by width, as which elements are moved that are not computed with."""
Place = tuple[Expression, Sequence[Expression]]
"""An offset, and a stride for each axis of the result."""


@chooses("elementwise")
def _elementwise(step: Step, target: str, limits: Limits) -> Choice:
    operands, shape = given(step), step.operands["y0"].shape
    if len(operands) > MOST_OPERANDS:
        raise NoTemplate(f"expected at most {MOST_OPERANDS} operands of one expression, found {len(operands)}")
    places: list[Place] = [(0, broadcast_strides(x.shape, shape)) for x in operands]
    types = [str(x.dtype) for x in operands]
    return mapped(step, str(step.attributes["expression"]), types, places, target, limits)


@chooses("expand")
def _expand(step: Step, target: str, limits: Limits) -> Choice:
    return _moved(step, (0, broadcast_strides(given(step)[0].shape, step.operands["y0"].shape)), target, limits)


@chooses("bitcast")
def _bitcast(step: Step, target: str, limits: Limits) -> Choice:
    return _moved(step, (0, strides(given(step)[0].shape)), target, limits)


@chooses("transpose")
def _transpose(step: Step, target: str, limits: Limits) -> Choice:
    along = strides(given(step)[0].shape)
    return _moved(step, (0, [along[axis] for axis in numbers(step, "axes")]), target, limits)


@chooses("slice")
def _slice(step: Step, target: str, limits: Limits) -> Choice:
    x, starts = given(step)[0], numbers(step, "starts")
    along = strides(x.shape)
    first = [start if start >= 0 else dims.add(size, start) for start, size in zip(starts, x.shape, strict=True)]
    steps = [dims.mul(stride, by) for stride, by in zip(along, numbers(step, "steps"), strict=True)]
    return _moved(step, (_dot(first, along), steps), target, limits)


@chooses("fill")
def _fill(step: Step, target: str, limits: Limits) -> Choice:
    return mapped(step, str(step.attributes["value"]), [], [], target, limits)


@chooses("iota")
def _iota(step: Step, target: str, limits: Limits) -> Choice:
    dtype = step.operands["y0"].dtype
    by, start = (number("int64", numbers(step, name)[0]) for name in ("step", "start"))
    expression = f"cast.{dtype}(add(mul(cast.int64(x0), {by}), {start}))"
    return mapped(step, expression, [], [(0, [1])], target, limits)


@chooses("triangle")
def _triangle(step: Step, target: str, limits: Limits) -> Choice:
    """x0, perhaps the diagonal, and how far right of the main one an element is."""
    operands = given(step)
    x = operands[0]
    right = [0] * (len(x.shape) - 2) + [-1, 1]
    diagonal = "x1" if len(operands) == 2 else "int64:0"
    kept = f"{'ge' if step.attributes['upper'] else 'le'}(cast.int64(x{len(operands)}), {diagonal})"
    places: list[Place] = [(0, strides(x.shape)), (0, [0] * len(x.shape)), (0, right)]
    if len(operands) == 1:
        del places[1]
    expression = f"where({kept}, x0, {number(x.dtype, 0)})"
    return mapped(step, expression, [str(tensor.dtype) for tensor in operands], places, target, limits)


@chooses("concat")
def _concat(step: Step, target: str, limits: Limits) -> Choice:
    operands, y = given(step), step.operands["y0"]
    if len(operands) > MOST_OPERANDS:
        raise NoTemplate(f"expected at most {MOST_OPERANDS} operands behind each other, found {len(operands)}")
    axis = numbers(step, "axis")[0] % len(y.shape)
    widths = [dims.product(x.shape[axis:]) for x in operands]
    starts = list(accumulate(widths[:-1], dims.add, initial=0))
    words, outer = Words(limits), dims.product(y.shape[:axis])
    tile = rows_and_columns([Axis(outer, ()), Axis(dims.product(y.shape[axis:]), ())], limits)
    parts = " ".join(words.row(part) for part in zip(starts, widths, strict=True))
    return _tiled(step, "tensor_concat", tile, words, {"parts": parts, "operands": len(operands)}, target)


@chooses("pad")
def _pad(step: Step, target: str, limits: Limits) -> Choice:
    """Neighbours are one axis where neither is padded."""
    x, y, before = step.operands["x0"], step.operands["y0"], numbers(step, "before")
    along = zip(y.shape, strides(x.shape), strides(y.shape), x.shape, before, strict=True)
    padded = [Axis(size, (stride, place, count, first)) for size, stride, place, count, first in along]
    axes: list[Axis] = []
    for axis in padded:
        whole = axis.strides[2:] == (axis.size, 0)
        if whole and axes and axes[-1].strides[2:] == (axes[-1].size, 0):
            size = dims.mul(axes.pop().size, axis.size)
            axis = Axis(size, (*axis.strides[:2], size, 0))
        axes.append(axis)
    tile, words = rows_and_columns(axes, limits), Words(limits)
    dummies = [Axis(1, (0, 0, 1, 0))]
    parts = [axis.strides for group in tile.groups for axis in group or dummies]
    written: dict[str, AxisValue] = {
        "result": words.place(0, tile, 1),
        "parts": " ".join(words.row((first, count, stride)) for stride, _, count, first in parts),
        "mode": str(step.attributes["mode"]),
        "value": "x1" in step.operands,
    }
    return _tiled(step, "tensor_pad", tile, words, written, target)


@chooses("gather")
def _gather(step: Step, target: str, limits: Limits) -> Choice:
    x, indices = given(step)
    axis = numbers(step, "axis")[0] % len(x.shape)
    own = strides(x.shape)
    places = [*own[:axis], *[0] * len(indices.shape), *own[axis + 1 :]]
    named = [*[0] * axis, *strides(indices.shape), *[0] * (len(x.shape) - axis - 1)]
    return _taken(step, places, named, [(x.shape[axis], own[axis])], target, limits)


@chooses("gather_elements")
def _gather_elements(step: Step, target: str, limits: Limits) -> Choice:
    x, indices = given(step)
    axis = numbers(step, "axis")[0] % len(x.shape)
    own = strides(x.shape)
    places = [0 if i == axis else stride for i, stride in enumerate(own)]
    return _taken(step, places, strides(indices.shape), [(x.shape[axis], own[axis])], target, limits)


@chooses("gather_nd")
def _gather_nd(step: Step, target: str, limits: Limits) -> Choice:
    x, indices = given(step)
    batch, depth = numbers(step, "batch")[0], indices.shape[-1]
    assert isinstance(depth, int), "as inferred"
    own, named = strides(x.shape), strides(indices.shape)[:-1]
    places = [*own[:batch], *[0] * (len(named) - batch), *own[batch + depth :]]
    named += [0] * (len(x.shape) - batch - depth)
    picked = list(zip(x.shape, own, strict=True))[batch : batch + depth]
    return _taken(step, places, named, picked, target, limits)


def _taken(
    step: Step,
    places: Sequence[Expression],
    named: Sequence[Expression],
    picked: Sequence[tuple[Expression, Expression]],
    target: str,
    limits: Limits,
) -> Choice:
    """x0 at these strides along the result, and at what x1 says along the axes that are picked."""
    shape = step.operands["y0"].shape
    tile, words = rows_and_columns(merged(axes_of(shape, places, named, strides(shape))), limits), Words(limits)
    written: dict[str, AxisValue] = {
        "places": " ".join(words.place(0, tile, i) for i in range(3)),
        "picked": " ".join(map(words.row, picked)),
        "indices": step.operands["x1"].dtype,
    }
    return _tiled(step, "tensor_take", tile, words, written, target)


def _tiled(
    step: Step, template: str, tile: Tile, words: Words, written: dict[str, AxisValue], target: str
) -> Choice:
    """A template that moves elements as they are, with what all of these are told."""
    written |= {
        "tile": words.tile(tile),
        "dtype": MOVED[ITEM_BYTES[step.operands["y0"].dtype]],
        "sizes": len(words.letters),
        "block_m": tile.block_m,
        "block_n": tile.block_n,
        "warps": WARPS,
        "pdl": has_pdl(target),
    }
    check_letters(written)
    return Choice(template, written, words.finish(tile.programs))


def numbers(step: Step, name: str) -> tuple[int, ...]:
    """An attribute that is a whole number, or some."""
    value = step.attributes[name]
    found = value if isinstance(value, tuple) else (value,)
    assert all(isinstance(entry, int) for entry in found), "whole numbers"
    return tuple(int(entry) for entry in found)


def _dot(first: Sequence[Expression], along: Sequence[Expression]) -> Expression:
    total: Expression = 0
    for place, stride in zip(first, along, strict=True):
        total = dims.add(total, dims.mul(place, stride))
    return total


def _moved(step: Step, place: Place, target: str, limits: Limits) -> Choice:
    """The elements of x0 at these places, as they are."""
    moved = MOVED[ITEM_BYTES[step.operands["x0"].dtype]]
    return mapped(step, "x0", [moved], [place], target, limits, moved)


def mapped(
    step: Step,
    expression: str,
    types: Sequence[str],
    places: Sequence[Place],
    target: str,
    limits: Limits,
    result: str | None = None,
) -> Choice:
    """`tensor_map` with operands of these types at these places, and numbers at the places behind them."""
    y = step.operands["y0"]
    axes = merged(axes_of(y.shape, *(along for _, along in places), strides(y.shape)))
    tile = _tile(axes, len(types), result or y.dtype, limits)
    words = Words(limits)
    written: dict[str, AxisValue] = {f"x{i}": types[i] if i < len(types) else ABSENT for i in range(MOST_OPERANDS)}
    written |= {
        "expression": expression,
        "tile": words.tile(tile),
        "places": " ".join(words.place(start, tile, i) for i, (start, _) in enumerate(places)),
        "result": words.place(0, tile, len(places)),
        "y0": result or y.dtype,
        "sizes": len(words.letters),
        "block_m": tile.block_m,
        "block_n": tile.block_n,
        "warps": WARPS,
        "pdl": has_pdl(target),
    }
    check_letters(written)
    return Choice("tensor_map", written, words.finish(tile.programs))


def _tile(axes: Sequence[Axis], operands: int, dtype: str, limits: Limits) -> Tile:
    """Columns along the result, and rows along the axis that an operand lies along, where that is another one."""
    for index in range(operands):
        lying = [i for i, axis in enumerate(axes) if axis.strides[index] == 1]
        if axes and lying and axes[-1].strides[index] not in (0, 1) and lying[-1] != len(axes) - 1:
            return turned(axes, lying[-1], ITEM_BYTES[dtype], limits)
    return rows_and_columns(axes, limits)
