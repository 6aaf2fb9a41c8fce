"""Which kernel puts elements behind each other, or takes and writes them at places that whole numbers name?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hjgc.compiler.function.choice import Limits, chooses, given, strides
from hjgc.compiler.function.tiling import Axis, Words, axes_of, merged, moved, numbers, rows_and_columns, tiled
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.kernels.tiles_of_functions import MOST_OPERANDS
from hjgc.compiler.program import Step
from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Expression, spell

MOST_LOOKS = 1 << 30
"""Elements times the whole numbers that each of them looks through."""
Looked = tuple[Expression, Expression, Expression]
"""How many numbers an element looks through, and how far their neighbours lie apart, and those of the updates."""
Limit = Sequence[Expression] | None


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
    return tiled("tensor_concat", tile, words, {"parts": parts, "operands": len(operands), "dtype": moved(y)}, target)


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
        "dtype": moved(x),
    }
    return tiled("tensor_pad", tile, words, written, target)


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
        "dtype": moved(step.operands["y0"]),
        "indices": step.operands["x1"].dtype,
    }
    return tiled("tensor_take", tile, words, written, target)


@chooses("write_rows")
def _write_rows(step: Step, target: str, limits: Limits) -> Choice:
    x, new = step.operands["x0"], step.operands["x1"]
    axis = numbers(step, "axis")[0] % len(x.shape)
    rows = [int(i == axis) for i in range(len(x.shape))]
    along = strides(new.shape)
    beside = [0 if i == axis else stride for i, stride in enumerate(along)]
    sequences = [int(i == 0) for i in range(len(x.shape))]
    tile = rows_and_columns(merged(axes_of(x.shape, rows, beside, sequences, strides(x.shape))), limits)
    words = Words(limits)
    written: dict[str, AxisValue] = {
        "circular": bool(step.attributes["circular"]),
        "from": "x2" in step.operands,
        "places": " ".join(words.place(0, tile, i) for i in range(4)),
        "written": words.row((x.shape[axis], new.shape[axis], along[axis])),
        "dtype": moved(x),
    }
    return tiled("tensor_write_rows", tile, words, written, target)


@chooses("scatter_elements")
def _scatter_elements(step: Step, target: str, limits: Limits) -> Choice:
    x, indices, _ = given(step)
    axis = numbers(step, "axis")[0] % len(x.shape)
    along, own = strides(indices.shape), strides(x.shape)
    beside = [0 if i == axis else stride for i, stride in enumerate(along)]
    wanted = [int(i == axis) for i in range(len(own))]
    axes = axes_of(x.shape, wanted, beside, beside, own)
    looked = indices.shape[axis], along[axis], along[axis]
    rest = [(*shape[:axis], *shape[axis + 1 :]) for shape in (indices.shape, x.shape)]
    limit = None if rest[0] == rest[1] else [*indices.shape[:axis], x.shape[axis], *indices.shape[axis + 1 :]]
    return _scattered(step, axes, looked, [(x.shape[axis], 1)], limit, target, limits)


@chooses("scatter_nd")
def _scatter_nd(step: Step, target: str, limits: Limits) -> Choice:
    """The first axes are named; along the others slices and updates lie alike."""
    x, indices, _ = given(step)
    depth = indices.shape[-1]
    assert isinstance(depth, int), "as inferred"
    named, own = strides(x.shape[:depth]), strides(x.shape)
    nothing, slices = [0] * depth, [0] * (len(own) - depth)
    axes = axes_of(x.shape, [*named, *slices], [0] * len(own), [*nothing, *own[depth:]], own)
    looked = dims.product(indices.shape[:-1]), depth, dims.product(x.shape[depth:])
    picked = list(zip(x.shape[:depth], named, strict=True))
    return _scattered(step, axes, looked, picked, None, target, limits)


def _scattered(
    step: Step,
    axes: Sequence[Axis],
    looked: Looked,
    picked: Sequence[tuple[Expression, Expression]],
    limit: Limit,
    target: str,
    limits: Limits,
) -> Choice:
    """Axes with the strides of what is wanted, the numbers, the updates and the result."""
    x, reduction = step.operands["x0"], str(step.attributes["reduction"])
    looks = limits(dims.product((*x.shape, looked[0])))[1]
    if looks > MOST_LOOKS:
        raise NoTemplate(f"expected elements times {spell(looked[0])} of up to {MOST_LOOKS}, found {looks}")
    tile, words = rows_and_columns(merged(axes) if limit is None else axes, limits), Words(limits)
    limited = [] if limit is None else _by_group(limit)
    written: dict[str, AxisValue] = {
        "reduction": reduction,
        "places": " ".join(words.place(0, tile, i) for i in range(4)),
        "named": words.row(looked),
        "picked": " ".join(map(words.row, picked)),
        "limits": words.row(limited),
        "dtype": moved(x) if reduction == "none" else x.dtype,
        "indices": step.operands["x1"].dtype,
    }
    return tiled("tensor_scatter", tile, words, written, target)


def _by_group(limit: Sequence[Expression]) -> list[Expression]:
    """A limit for each axis of a tile without a batch, where a group without axes is one of size 1."""
    rows = list(limit[:-1]) or [1]
    return [1, *rows, limit[-1]]
