"""Which kernel computes, or moves, elements one by one?"""

from __future__ import annotations

from collections.abc import Sequence

from hjgc.compiler.function.choice import Limits, chooses, given, strides
from hjgc.compiler.function.tiling import (
    Axis,
    Tile,
    Words,
    axes_of,
    broadcast_strides,
    merged,
    moved,
    numbers,
    rows_and_columns,
    tiled,
    turned,
)
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import ABSENT, AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.kernels.tiles_of_functions import MOST_OPERANDS
from hjgc.compiler.program import Step
from hjgc.plan_format import dims
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.elementwise import number
from hjgc.plan_format.sizes import Expression

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


@chooses("unfold")
def _unfold(step: Step, target: str, limits: Limits) -> Choice:
    along = strides(given(step)[0].shape)
    inside, between = (
        [dims.mul(stride, by) for stride, by in zip(along[2:], numbers(step, name), strict=True)]
        for name in ("dilations", "strides")
    )
    return _moved(step, (0, [*along[:2], *inside, *between]), target, limits)


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


def _dot(first: Sequence[Expression], along: Sequence[Expression]) -> Expression:
    total: Expression = 0
    for place, stride in zip(first, along, strict=True):
        total = dims.add(total, dims.mul(place, stride))
    return total


@chooses("shape_of")
def _shape_of(step: Step, target: str, limits: Limits) -> Choice:
    """The number of the axis, and the sizes as numbers beside it."""
    (start,), (end,) = numbers(step, "start"), numbers(step, "end")
    shape = step.operands["x0"].shape[start:end]
    sizes: list[Place] = [(size, [0]) for size in shape]
    expression = "int32:0"
    for i in range(len(shape)):
        expression = f"where(eq(x0, int32:{i}), x{i + 1}, {expression})"
    return mapped(step, f"cast.int64({expression})", [], [(0, [1]), *sizes], target, limits)


@chooses("rotate")
def _rotate(step: Step, target: str, limits: Limits) -> Choice:
    x, positions = step.operands["x0"], step.operands.get("x3")
    batches, *middle, columns = x.shape
    heads_first = bool(step.attributes["heads_first"])
    length = middle[1] if heads_first else middle[0]
    line = [length, 0, 1] if heads_first else [length, 1, 0]
    tile = rows_and_columns([*merged(axes_of((batches, *middle), line)), Axis(columns, (0,))], limits)
    words = Words(limits)
    written: dict[str, AxisValue] = {
        "width": numbers(step, "width")[0],
        "interleaved": bool(step.attributes["interleaved"]),
        "places": words.place(0, tile, 0),
        "angles": words(step.operands["x1"].shape[0]),
        "dtype": x.dtype,
        "positions": ABSENT if positions is None else positions.dtype,
    }
    return tiled("tensor_rotate", tile, words, written, target)


def _moved(step: Step, place: Place, target: str, limits: Limits) -> Choice:
    """The elements of x0 at these places, as they are."""
    dtype = moved(step.operands["x0"])
    return mapped(step, "x0", [dtype], [place], target, limits, dtype)


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
        "places": " ".join(words.place(start, tile, i) for i, (start, _) in enumerate(places)),
        "result": words.place(0, tile, len(places)),
        "y0": result or y.dtype,
    }
    choice = tiled("tensor_map", tile, words, written, target)
    reason = template("tensor_map").refuse(choice.axes)
    if reason is not None:
        raise NoTemplate(reason)
    return choice


def _tile(axes: Sequence[Axis], operands: int, dtype: str, limits: Limits) -> Tile:
    """Columns along the result, and rows along the axis that an operand lies along, where that is another one."""
    for index in range(operands):
        lying = [i for i, axis in enumerate(axes) if axis.strides[index] == 1]
        if axes and lying and axes[-1].strides[index] not in (0, 1) and lying[-1] != len(axes) - 1:
            return turned(axes, lying[-1], ITEM_BYTES[dtype], limits)
    return rows_and_columns(axes, limits)
