"""Where do the elements of a tile lie: its coordinates along the axes of a tensor, and their places in an operand?

A variant says so in words between commas, read while the kernel is compiled: `12` is a number, `s3` the open size s3 of
the launch, `s3:-8` that times -8. A *tile* is three lists of axes, `batch rows columns`, of which a program takes one
batch, a block of rows and a block of columns. A *place* is an offset and a stride for each of these axes, in elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import OneOf, Parameter

WORD = re.compile(r"-?\d{1,10}|s\d{1,2}(:-?\d{1,10})?")
MOST_SIZES = 12
MOVED = OneOf(("int8", "int16", "int32", "int64"))
"""The type, by width, as which elements are moved that are not computed with."""
INDICES = OneOf(("int32", "int64"))
BLOCKS = OneOf(tuple(1 << i for i in range(11)))
SIZES = tuple(Parameter(f"s{i}", "size", "int32", when="sizes", place=i) for i in range(MOST_SIZES))


def refuse_words(sizes: int, tile: str, *lists: str) -> str | None:
    """Why a kernel of so many open sizes cannot read a tile, and other lists; None if it can."""
    if len(tile.split()) != 3:
        return f"expected a tile of batch, rows and columns, found {tile!r}"
    found = [entry for text in (tile, *lists) for row in _lists(text) for entry in row]
    wrong = next((entry for entry in found if not _can_read(entry, sizes)), None)
    return None if wrong is None else f"expected numbers and {sizes} sizes, found {wrong!r}"


def _can_read(entry: str, sizes: int) -> bool:
    is_size = entry.startswith("s")
    return WORD.fullmatch(entry) is not None and not (is_size and int(entry[1:].split(":")[0]) >= sizes)


def refuse_places(tile: str, places: str) -> str | None:
    """Why the places do not belong to the tile; None if they do."""
    wanted = 1 + sum(map(len, _lists(tile)))
    found = [len(place) for place in _lists(places)]
    return None if all(count == wanted for count in found) else f"expected places of {wanted} words, found {found}"


@triton.jit
def cut(batches, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The batch, rows [BLOCK_M, 1] and columns [1, BLOCK_N] of this program, and of each whether it is inside (of rows
    and columns only where the batch is). Neighbouring programs have neighbouring columns."""
    program = tl.program_id(0)
    across = tl.maximum(tl.cdiv(columns, BLOCK_N), 1)
    down = tl.maximum(tl.cdiv(rows, BLOCK_M), 1)
    rest = program // across
    batch = rest // down
    row = rest % down * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = program % across * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    some = batch < batches
    return (batch, row, column), (some, row < tl.where(some, rows, 0), column < tl.where(some, columns, 0))


@triton.jit
def inside_axis(number, count):
    """The element that a whole number names of `count`: from behind under 0, the nearest one where it is outside."""
    number = tl.where(number < 0, number + count, number)
    return tl.maximum(tl.minimum(number, count - 1), 0).to(tl.int32)


def builtin(function: Callable[..., Any]) -> Callable[..., Any]:
    """How Triton knows what runs while it compiles. Its interpreter calls such functions too, without a semantic."""
    function.__triton_builtin__ = True  # type: ignore[attr-defined] (how Triton knows what runs while it compiles)
    return function


@builtin
def word(TEXT: Any, INDEX: Any, sizes: Any, _semantic: Any = None) -> Any:
    """A word of a list, as an int32."""
    words = _text(TEXT).replace(" ", ",").split(",")
    return _Reader(sizes, _semantic).number(words[int(getattr(INDEX, "value", INDEX))])


@builtin
def total(TILE: Any, GROUP: Any, sizes: Any, _semantic: Any = None) -> Any:
    """How many elements lie along the batch (0), the rows (1), the columns (2)."""
    reader = _Reader(sizes, _semantic)
    numbers = [reader.number(entry) for entry in _lists(_text(TILE))[int(getattr(GROUP, "value", GROUP))]]
    found = numbers[0]
    for number in numbers[1:]:
        found = reader.operate("__mul__", found, number)
    return found


@builtin
def coordinates(TILE: Any, numbers: Any, sizes: Any, _semantic: Any = None) -> Any:
    """The coordinates along every axis of a tile, from the `numbers` (batch, row, column)."""
    reader = _Reader(sizes, _semantic)
    return tuple(at for axes, flat in zip(_lists(_text(TILE)), numbers, strict=True) for at in reader.split(axes, flat))


@builtin
def offset(PLACES: Any, INDEX: Any, at: Any, sizes: Any, _semantic: Any = None) -> Any:
    """Where an operand has the element at these coordinates: a scalar where none of them counts."""
    return _Reader(sizes, _semantic).offset(_lists(_text(PLACES))[int(getattr(INDEX, "value", INDEX))], at)


@builtin
def block_offset(
    PLACES: Any, INDEX: Any, at: Any, BLOCK_M: Any, BLOCK_N: Any, sizes: Any, _semantic: Any = None
) -> Any:
    """`offset`, for each element of the block [BLOCK_M, BLOCK_N]."""
    reader, shape = _Reader(sizes, _semantic), (BLOCK_M, BLOCK_N)
    found = reader.offset(_lists(_text(PLACES))[int(getattr(INDEX, "value", INDEX))], at)
    return reader.operate("__add__", found, reader.zeros(shape))


@builtin
def mask(TILE: Any, PLACES: Any, INDEX: Any, inside: Any, _semantic: Any = None) -> Any:
    """What of `inside` (batch, rows, columns) counts for an operand: a mask of the shape that its offset has."""
    place = _lists(_text(PLACES))[int(getattr(INDEX, "value", INDEX))]
    return _Reader((), _semantic).mask(_lists(_text(TILE)), place, inside)


@builtin
def fetch(x: Any, TILE: Any, PLACES: Any, at: Any, inside: Any, sizes: Any, _semantic: Any = None) -> Any:
    """The elements of each operand that has a place; of one that is absent, the offset itself."""
    reader, found = _Reader(sizes, _semantic), []
    whole = reader.operate("__and__", inside[1], inside[2])
    for i, place in enumerate(_lists(_text(PLACES))):
        where = reader.offset(place, at)
        if i < len(x) and getattr(x[i], "value", x[i]) is not None:
            seen = reader.mask(_lists(_text(TILE)), place, inside)
            if place[-1] != "0":  # repeated rows are read again: to hand them around costs more
                where, seen = reader.operate("__add__", where, reader.zeros(whole.shape)), whole
            where = tl.load(reader.operate("__add__", x[i], where), mask=seen, **reader.kernel)
        found.append(where)
    return tuple(found)


class _Reader:
    """Makes the numbers that words stand for. Zeros and ones leave nothing behind in the kernel."""

    def __init__(self, sizes: Any, semantic: Any) -> None:
        self.sizes = sizes
        self.kernel = {} if semantic is None else {"_semantic": semantic}

    def operate(self, name: str, first: Any, *rest: Any) -> Any:
        return getattr(first, name)(*rest, **self.kernel)

    def zeros(self, shape: Any) -> Any:
        return tl.full([getattr(side, "value", side) for side in shape], 0, tl.int32, **self.kernel)

    def number(self, entry: str) -> Any:
        name, _, factor = entry.partition(":")
        if name[0] != "s":
            return tl.full((), int(name), tl.int32, **self.kernel)
        size = self.sizes[int(name[1:])]
        return self.operate("__mul__", size, self.number(factor)) if factor else size

    def split(self, axes: Sequence[str], flat: Any) -> list[Any]:
        """Coordinates of a number that counts through these axes, the last one fastest."""
        found: list[Any] = []
        for axis in reversed(axes[1:]):
            size = self.number(axis)
            found.append(self.operate("__mod__", flat, size))
            flat = self.operate("__floordiv__", flat, size)
        return [flat, *reversed(found)]

    def offset(self, place: Sequence[str], at: Any) -> Any:
        found = None if place[0] == "0" else self.number(place[0])
        for i, stride in enumerate(place[1:]):
            if stride != "0":
                term = at[i] if stride == "1" else self.operate("__mul__", self.number(stride), at[i])
                found = term if found is None else self.operate("__add__", found, term)
        return self.number("0") if found is None else found

    def mask(self, tile: Sequence[Sequence[str]], place: Sequence[str], inside: Any) -> Any:
        owners = [group for group, axes in enumerate(tile) for _ in axes]
        used = {group for group, stride in zip(owners, place[1:], strict=True) if stride != "0"}
        masks = [inside[group] for group in sorted(used - {0})] or [inside[0]]
        return masks[0] if len(masks) == 1 else self.operate("__and__", *masks)


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _lists(text: str) -> list[list[str]]:
    return [part.split(",") for part in text.split()]
