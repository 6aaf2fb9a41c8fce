"""Which kernel computes along an axis: reductions, softmax, running sums, the largest numbers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hjgc.compiler.function.choice import Limits, chooses, given, grid_blocks, strides
from hjgc.compiler.function.tiling import Axis, Tile, Words, axes_of, check_letters, count, merged, power_over
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.ops.shapes import axes_of as reduced_axes
from hjgc.plan_format.sizes import Expression

HELD = 16384
"""Numbers that a program holds at once, of rows that are not longer."""
USUAL = 2048
MOST_FOUND = 64
COMPUTED = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8")


@chooses("reduce")
def _reduce(step: Step, target: str, limits: Limits) -> Choice:
    x, kind = given(step)[0], str(step.attributes["kind"])
    if x.dtype not in COMPUTED and not (x.dtype == "bool" and kind in ("max", "min")):
        raise NoTemplate(f"no kernel computes {kind} of {x.dtype}")
    axes, named = axes_of(x.shape, strides(x.shape)), step.attributes["axes"]
    assert isinstance(named, tuple), "as inferred"
    along = reduced_axes([int(axis) for axis in named], len(axes))
    rows = merged(axis for i, axis in enumerate(axes) if i not in along)
    tile = _rows(rows, merged(axes[i] for i in along), limits, USUAL)
    return _along(step, "tensor_reduce", tile, {"kind": kind, "once": _at_once(tile, limits)}, target, limits)


@chooses("softmax")
def _softmax(step: Step, target: str, limits: Limits) -> Choice:
    x = given(step)[0]
    tile = _one_axis(x.shape, [strides(x.shape)], _number(step, "axis"), limits)
    written: dict[str, AxisValue] = {"log": bool(step.attributes["log"]), "once": _at_once(tile, limits)}
    return _along(step, "tensor_softmax", tile, written, target, limits)


@chooses("arg_reduce")
def _arg_reduce(step: Step, target: str, limits: Limits) -> Choice:
    x = given(step)[0]
    tile = _one_axis(x.shape, [strides(x.shape)], _number(step, "axis"), limits)
    written: dict[str, AxisValue] = {
        "kind": str(step.attributes["kind"]),
        "last": bool(step.attributes["last"]),
        "once": _at_once(tile, limits),
    }
    return _along(step, "tensor_arg_reduce", tile, written, target, limits)


@chooses("cumulate")
def _cumulate(step: Step, target: str, limits: Limits) -> Choice:
    if "x1" in step.operands:
        raise NoTemplate("no kernel cumulates along an axis that is computed at run time")
    x = given(step)[0]
    tile = _one_axis(x.shape, [strides(x.shape)], _number(step, "axis"), limits)
    written: dict[str, AxisValue] = {
        "kind": str(step.attributes["kind"]),
        "exclusive": bool(step.attributes["exclusive"]),
        "reverse": bool(step.attributes["reverse"]),
        "once": _at_once(tile, limits),
    }
    return _along(step, "tensor_cumulate", tile, written, target, limits)


@chooses("top_k")
def _top_k(step: Step, target: str, limits: Limits) -> Choice:
    """A program holds its rows whole."""
    x, y = given(step)[0], step.operands["y0"]
    axis = _number(step, "axis") % len(x.shape)
    wanted, most = y.shape[axis], limits(x.shape[axis])[1]
    if not isinstance(wanted, int) or not 1 <= wanted <= MOST_FOUND or most > HELD:
        raise NoTemplate(f"expected 1 to {MOST_FOUND} of up to {HELD} numbers to be found, found others")
    tile, longest = _one_axis(x.shape, [strides(x.shape), strides(y.shape)], axis, limits), power_over(most)
    tile = replace(tile, block_m=min(tile.block_m, HELD // longest), block_n=longest)
    written: dict[str, AxisValue] = {"count": wanted, "largest": bool(step.attributes["largest"])}
    return _along(step, "tensor_top_k", tile, written, target, limits, 2)


def _number(step: Step, name: str) -> int:
    value = step.attributes[name]
    assert isinstance(value, int), "a whole number"
    return value


def _one_axis(shape: Sequence[Expression], places: Sequence[Sequence[Expression]], axis: int, limits: Limits) -> Tile:
    """Rows along one axis, of operands that lie at these strides."""
    axes = axes_of(shape, *places)
    axis %= len(axes)
    return _rows(merged((*axes[:axis], *axes[axis + 1 :])), (axes[axis],), limits, HELD)


def _rows(rows: tuple[Axis, ...], columns: tuple[Axis, ...], limits: Limits, held: int) -> Tile:
    """Rows whose columns a program works along, all at once where it can hold as many; side by side where the operand
    lies along the rows."""
    most_rows, longest = power_over(limits(count(rows))[1]), power_over(limits(count(columns))[1])
    if rows and rows[-1].strides[0] == 1:
        block_m = min(64 if longest * 64 <= held else 16, most_rows)
        return Tile((), rows, columns, block_m, longest if longest * block_m <= held else max(1, USUAL // block_m))
    block_n = longest if longest <= HELD else USUAL
    return Tile((), rows, columns, max(1, min(most_rows, USUAL // 2 // block_n)), block_n)


def _at_once(tile: Tile, limits: Limits) -> bool:
    return limits(count(tile.columns))[1] <= tile.block_n


def _along(
    step: Step,
    template: str,
    tile: Tile,
    written: dict[str, AxisValue],
    target: str,
    limits: Limits,
    places: int = 1,
) -> Choice:
    """A template that works along the columns of its tile, with what all of these are told."""
    words, elements = Words(limits), tile.block_m * tile.block_n
    written |= {
        "tile": words.tile(tile),
        "places": " ".join(words.place(0, tile, i) for i in range(places)),
        "dtype": step.operands["x0"].dtype,
        "sizes": len(words.letters),
        "block_m": tile.block_m,
        "block_n": tile.block_n,
        "warps": 4 if elements <= USUAL else 8 if elements <= 2 * USUAL else 16,
        "pdl": has_pdl(target),
    }
    check_letters(written)
    return Choice(template, written, words.finish(grid_blocks(count(tile.rows), tile.block_m)))
