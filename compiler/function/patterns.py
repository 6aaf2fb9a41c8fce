"""Along which axes of a result has an operand elements of its own, as kernels are told it?"""

from __future__ import annotations

from collections.abc import Sequence

from hjgc.compiler.kernels.declaration import ABSENT, AxisValue
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.compiler.kernels.tiles_of_functions import MOST_BESIDE
from hjgc.compiler.program import Tensor
from hjgc.plan_format.sizes import Expression

BITS = (4, 2, 1)

Groups = tuple[Sequence[Expression], Sequence[Expression], Sequence[Expression]]
"""The axes of a result that make up its batch, its rows and its columns."""


def pattern(shape: Sequence[Expression], groups: Groups) -> int:
    """4 for the batch, 2 for the rows and 1 for the columns that an operand, broadcast to the result, has of its own.
    Raises NoTemplate where it has some of a group's axes only."""
    whole = [axis for group in groups for axis in group]
    axes = [*[1] * (len(whole) - len(shape)), *shape]
    found, place = 0, 0
    for bit, group in zip(BITS, groups, strict=True):
        own = axes[place : place + len(group)]
        place += len(group)
        if list(own) != list(group):
            if any(axis != 1 for axis in own):
                raise NoTemplate("no kernel broadcasts an operand along some of the rows' axes")
        elif any(axis != 1 for axis in group):
            found |= bit
    return found


def beside_axes(tensors: Sequence[Tensor], groups: Groups) -> dict[str, AxisValue]:
    """The axes of a kernel that loads these operands as x2, x3, ... besides what it computes. Raises NoTemplate."""
    if len(tensors) > MOST_BESIDE:
        raise NoTemplate(f"expected up to {MOST_BESIDE} operands of an expression, found {len(tensors)}")
    axes: dict[str, AxisValue] = {}
    for i in range(MOST_BESIDE):
        tensor = tensors[i] if i < len(tensors) else None
        axes[f"x{i + 2}"] = ABSENT if tensor is None else tensor.dtype
        axes[f"x{i + 2}_pattern"] = 0 if tensor is None else pattern(tensor.shape, groups)
    return axes
