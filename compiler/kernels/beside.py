"""What do kernels load besides what they compute: operands broadcast to a tile of the result?

A pattern says along which of three axes an operand has elements of its own: 4 the batch, 2 the rows, 1 the columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import ABSENT, TRITON_TYPES, Axes, AxisValue, OneOf, Parameter, Whole
from hjgc.compiler.kernels.tiles_of_functions import MOST_BESIDE

ROLES = tuple(f"x{i}" for i in range(2, 2 + MOST_BESIDE))

BESIDE_AXES = {
    **{role: OneOf((ABSENT, *TRITON_TYPES)) for role in ROLES},
    **{f"{role}_pattern": Whole(0, 7) for role in ROLES},
}
"""Of x2, x3, ... the element type, or that there is none, and the pattern."""
PARAMETERS = tuple(Parameter(role, "operand", role, when=role) for role in ROLES)


def types_beside(axes: Axes, first: str) -> tuple[str, ...]:
    """The types of the expression's x0 and x1, which are `first`, and of the operands that there are."""
    return (first, first, *(str(axes[role]) for role in ROLES if axes[role] != ABSENT))


def beside_constants(axes: Axes, types: Sequence[str]) -> dict[str, AxisValue]:
    """The constants of kernels that load these operands; `types` are those of the expression."""
    return {"TYPES": ",".join(types), **{f"P{role[1:]}": axes[f"{role}_pattern"] for role in ROLES}}


@triton.jit
def load_beside(x, batch, rows, columns, count, width, otherwise, PATTERN: tl.constexpr):
    """The elements of x at these rows and columns of a batch: [rows or 1, columns or 1]; `otherwise` without x. Where
    there are no rows nothing is read."""
    length = width if PATTERN & 1 else 1
    start = batch * ((count if PATTERN & 2 else 1) * length) if PATTERN & 4 else 0
    if x is None:
        found = otherwise
    elif PATTERN & 3 == 3:
        inside = (rows < count)[:, None] & (columns < width)[None, :]
        found = tl.load(x + start + rows[:, None] * width + columns[None, :], mask=inside, other=0)
    elif PATTERN & 2:
        found = tl.load(x + start + rows, mask=rows < count, other=0)[:, None]
    elif PATTERN & 1:
        found = tl.load(x + start + columns, mask=columns < tl.minimum(count, 1) * width, other=0)[None, :]
    else:
        found = tl.load(x + start + tl.arange(0, 1), mask=tl.arange(0, 1) < count, other=0)[None, :]
    return found
