"""What do the shapes of tensor ops have in common: broadcasting, axes counted from behind?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hjgc.plan_format.ops.declaration import TensorType, Types
from hjgc.plan_format.sizes import Expression, spell

Shape = tuple[Expression, ...]


def present(inputs: Types) -> list[TensorType]:
    """The operands, none of which may be left out."""
    found = [x for x in inputs if x is not None]
    if len(found) != len(inputs) or not found:
        raise ValueError(f"expected every operand, found {len(found)} of {len(inputs)}")
    return found


def operands(inputs: Sequence[Any], count: int) -> list[Any]:
    """So many operands of a reference, None for those that are left out at the end."""
    return [*inputs, *[None] * (count - len(inputs))]


def one(inputs: Types) -> TensorType:
    """The only operand."""
    found = present(inputs)
    if len(found) != 1:
        raise ValueError(f"expected one operand, found {len(found)}")
    return found[0]


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """The shape that these are broadcast to, as in numpy. A size that may be 1 or not broadcasts with nothing but
    itself and 1."""
    result: list[Expression] = []
    for shape in shapes:
        result = [1] * (len(shape) - len(result)) + result
        offset = len(result) - len(shape)
        for i, axis in enumerate(shape):
            result[offset + i] = _broadcast_axis(result[offset + i], axis)
    return tuple(result)


def _broadcast_axis(known: Expression, axis: Expression) -> Expression:
    if axis == known or axis == 1:
        return known
    if known == 1:
        return axis
    raise ValueError(f"expected axes that are equal or 1, found {spell(known)} and {spell(axis)}")


def axis_of(axis: int, rank: int) -> int:
    """An axis from the front."""
    if not -rank <= axis < rank:
        raise ValueError(f"expected an axis of {rank}, found {axis}")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes from the front, rising, each once."""
    found = sorted(axis_of(axis, rank) for axis in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"expected each axis once, found {tuple(axes)}")
    return tuple(found)


def numbers(shape: Sequence[Expression]) -> tuple[int, ...] | None:
    """The shape if it is one of numbers."""
    found = tuple(axis for axis in shape if isinstance(axis, int))
    return found if len(found) == len(shape) else None
