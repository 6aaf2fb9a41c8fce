"""Where in a buffer does each element of a tensor lie that was reshaped, transposed and cut since?

Each axis is a list of factors, a size with its stride, outermost first: merging two axes joins their lists, and an axis
is split between factors, or inside of one where it divides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hjgc.plan_format import dims
from hjgc.plan_format.sizes import Expression

Factor = tuple[Expression, Expression]
"""Size and stride, in elements."""


@dataclass(frozen=True)
class Layout:
    """The axes of a tensor, by their factors; an axis of one element has none. The first element lies at `offset`."""

    axes: tuple[tuple[Factor, ...], ...]
    offset: Expression = 0

    def transposed(self, order: Sequence[int]) -> Layout:
        return Layout(tuple(self.axes[axis] for axis in order), self.offset)

    def cut(self, axis: int, start: int, size: Expression) -> Layout | None:
        """So many elements along an axis, from `start` on; None where the axis has no single stride, or where some are
        left out from behind of no fixed size."""
        factors = self.axes[axis]
        if len(factors) == 0 or (start == 0 and [size] == [factor for factor, _ in factors]):
            return self
        if len(factors) > 1 or start < 0 or size == 0:
            return None
        stride = factors[0][1]
        kept = ((size, stride),) if size != 1 else ()
        axes = (*self.axes[:axis], kept, *self.axes[axis + 1 :])
        return Layout(axes, dims.add(self.offset, dims.mul(stride, start)))

    def reshaped(self, shape: Sequence[Expression]) -> Layout | None:
        """The same elements in another shape; None where an axis would be split in no whole way."""
        left = [factor for axis in self.axes for factor in axis]
        found: list[tuple[Factor, ...]] = []
        for size in shape:
            taken = _take(left, size)
            if taken is None:
                return None
            found.append(taken)
        return None if left else Layout(tuple(found), self.offset)

    def strides(self) -> list[Expression] | None:
        """One for each axis, 0 for those of one element; None where an axis has no single one."""
        if any(len(axis) > 1 for axis in self.axes):
            return None
        return [axis[0][1] if axis else 0 for axis in self.axes]


def contiguous(shape: Sequence[Expression]) -> Layout:
    """A whole buffer."""
    axes: list[tuple[Factor, ...]] = []
    stride: Expression = 1
    for size in reversed(shape):
        axes.append(((size, stride),) if size != 1 else ())
        stride = dims.mul(stride, size)
    return Layout(tuple(reversed(axes)))


def _take(left: list[Factor], size: Expression) -> tuple[Factor, ...] | None:
    """The outermost factors that make up an axis of this size, taken from those `left`."""
    found: list[Factor] = []
    while size != 1:
        if not left:
            return None
        factor, stride = left.pop(0)
        rest = dims.divide(size, factor)
        if rest is None:
            inner = dims.divide(factor, size)
            if inner is None:
                return None
            left.insert(0, (inner, stride))
            found.append((size, dims.mul(stride, inner)))
            return _joined(found)
        found.append((factor, stride))
        size = rest
    return _joined(found)


def _joined(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Factors that lie one inside of the other as one."""
    found: list[Factor] = []
    for size, stride in factors:
        if found and found[-1][1] == dims.mul(size, stride):
            found[-1] = (dims.mul(found[-1][0], size), stride)
        else:
            found.append((size, stride))
    return tuple(found)
