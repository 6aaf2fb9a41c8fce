"""How are the axes of a tensor cut into the tiles of a kernel, and how are their sizes passed to it?

`compiler/kernels/places.py` says what the words mean that are written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from math import gcd

from hjgc.compiler.function.choice import Limits, grid_blocks, strides
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.compiler.kernels.prefill_choice import Choice
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.sizes import Expression, is_small, walk

MOST_SIZES = 12
"""Open sizes that one launch passes, as `compiler/kernels/places.py` has them (which imports triton)."""
MOST_LETTERS = 4096
MOVED = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
MOST_PROGRAMS = (1 << 31) - 1
WARPS = 4
FEW = 1 << 17
"""Elements up to which programs are small, so that they are many."""


@dataclass(frozen=True)
class Axis:
    """One axis of a result: its size, and the distance of its neighbours in each operand, in elements."""

    size: Expression
    strides: tuple[Expression, ...]


@dataclass(frozen=True)
class Tile:
    """Axes by what a program does with them: it takes one of the batch, a block of rows and a block of columns."""

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    block_m: int
    block_n: int

    @property
    def groups(self) -> tuple[tuple[Axis, ...], ...]:
        return self.batch, self.rows, self.columns

    @property
    def programs(self) -> Expression:
        down, across = dims.ceil_div(count(self.rows), self.block_m), dims.ceil_div(count(self.columns), self.block_n)
        return grid_blocks(dims.product((count(self.batch), down, across)), 1)


def count(axes: Iterable[Axis]) -> Expression:
    return dims.product(axis.size for axis in axes)


def axes_of(shape: Sequence[Expression], *places: Sequence[Expression]) -> list[Axis]:
    """The axes of a shape, with the strides of each operand along them."""
    return [Axis(size, found) for size, *found in zip(shape, *places, strict=True)]  # type: ignore[arg-type] (a tuple)


def broadcast_strides(shape: Sequence[Expression], wanted: Sequence[Expression]) -> list[Expression]:
    """Those of an operand of a shape along the axes of the result: 0 where it is repeated."""
    own = strides(shape)
    along = [0 if size == 1 else stride for size, stride in zip(shape, own, strict=True)]
    return [0] * (len(wanted) - len(shape)) + along


def merged(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """Without axes of size 1, and with neighbours as one where every operand has them behind each other."""
    found: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if found and all(
            outer == dims.mul(inner, axis.size) for outer, inner in zip(found[-1].strides, axis.strides, strict=True)
        ):
            found[-1] = Axis(dims.mul(found[-1].size, axis.size), axis.strides)
        else:
            found.append(axis)
    return tuple(found)


def rows_and_columns(axes: Sequence[Axis], limits: Limits) -> Tile:
    """The last axis as columns, all others as rows."""
    most = limits(count(axes))[1]
    elements = 256 if most <= FEW else 1024
    rows, columns = tuple(axes[:-1]), tuple(axes[-1:])
    most_rows = power_over(limits(count(rows))[1])
    block_n = _block(count(columns), elements, max(128, elements // most_rows), limits)
    return Tile((), rows, columns, min(elements // block_n, most_rows), block_n)


def turned(axes: Sequence[Axis], rows: int, item: int, limits: Limits) -> Tile:
    """Axis `rows` against the last one, for an operand of so many bytes an element that lies along that axis."""
    side = 64 if item <= 2 else 32
    block_n = min(side, power_over(limits(axes[-1].size)[1]))
    block_m = min(side * side // block_n, 4 * side, power_over(limits(axes[rows].size)[1]))
    batch = (*axes[:rows], *axes[rows + 1 : -1])
    return Tile(batch, (axes[rows],), (axes[-1],), block_m, block_n)


def _block(size: Expression, elements: int, usual: int, limits: Limits) -> int:
    """A power of two up to `elements` that leaves few lanes idle at the end; the usual one for an open size."""
    whole = min(elements, power_over(limits(size)[1]))
    if not isinstance(size, int):
        return min(usual, whole)
    blocks = [1 << i for i in range(whole.bit_length()) if 1 << i >= min(32, whole)]
    return min(blocks, key=lambda block: (-(-size // block) * block, -block))


def power_over(most: int) -> int:
    """The least power of two that is not under it."""
    return 1 << max(0, most - 1).bit_length()


class Words:
    """Spells sizes as kernels read them, and collects those that a launch passes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.letters: dict[str, Expression] = {}

    def __call__(self, size: Expression) -> str:
        if isinstance(size, int):
            return str(size)
        factor = _factor(size)
        part = dims.divide(size, factor)
        assert part is not None, "a factor divides"
        name = next((name for name, known in self.letters.items() if known == part), f"s{len(self.letters)}")
        self.letters[name] = part
        return name if factor == 1 else f"{name}:{factor}"

    def row(self, sizes: Iterable[Expression]) -> str:
        return ",".join(map(self, sizes))

    def tile(self, tile: Tile) -> str:
        """A group without axes is one of size 1."""
        return " ".join(self.row(axis.size for axis in group) or "1" for group in tile.groups)

    def place(self, start: Expression, tile: Tile, index: int) -> str:
        """Where operand `index` of the tile's axes lies."""
        along = ([axis.strides[index] for axis in group] or [0] for group in tile.groups)
        return self.row((start, *chain.from_iterable(along)))

    def finish(self, programs: Expression) -> Mapping[str, Expression]:
        """The letters, with `programs`. Raises NoTemplate where a kernel cannot take them."""
        if len(self.letters) > MOST_SIZES:
            raise NoTemplate(f"expected at most {MOST_SIZES} open sizes of one launch, found {len(self.letters)}")
        if self._limits(programs)[1] > MOST_PROGRAMS or any(map(self._is_wide, self.letters.values())):
            raise NoTemplate("expected sizes that fit into 32 bits")
        found = self.letters | {"programs": programs}
        if not all(map(is_small, found.values())):
            raise NoTemplate("expected sizes of few parts")
        return found

    def _is_wide(self, size: Expression) -> bool:
        low, high = self._limits(size)
        return low < -MOST_PROGRAMS or high > MOST_PROGRAMS


def _factor(size: Expression) -> int:
    """A whole number that divides a size, whatever the sizes in it are: kernels load in wide pieces for it."""
    numbers = [part for _, part in walk(size) if isinstance(part, int) and part > 1]
    found = sorted({*numbers, reduce(gcd, numbers, 0)} - {0}, reverse=True)
    return next((factor for factor in found if dims.divide(size, factor) is not None), 1)


def tiled(template: str, tile: Tile, words: Words, written: dict[str, AxisValue], target: str) -> Choice:
    """A template with these axes, and with those that all templates over tiles have."""
    written |= {
        "tile": words.tile(tile),
        "sizes": len(words.letters),
        "block_m": tile.block_m,
        "block_n": tile.block_n,
        "warps": WARPS,
        "pdl": has_pdl(target),
    }
    check_letters(written)
    return Choice(template, written, words.finish(tile.programs))


def moved(tensor: Tensor) -> str:
    """The type, as wide, as which elements are moved that are not computed with."""
    return MOVED[ITEM_BYTES[tensor.dtype]]


def check_letters(axes: Mapping[str, AxisValue]) -> None:
    """Raises NoTemplate for words that are longer than an axis may be."""
    if any(isinstance(value, str) and len(value) > MOST_LETTERS for value in axes.values()):
        raise NoTemplate(f"expected expressions of up to {MOST_LETTERS} letters")


def numbers(step: Step, name: str) -> tuple[int, ...]:
    """An attribute that is a whole number, or some."""
    value = step.attributes[name]
    found = value if isinstance(value, tuple) else (value,)
    assert all(isinstance(entry, int) for entry in found), "whole numbers"
    return tuple(int(entry) for entry in found)
