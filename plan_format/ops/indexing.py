"""What do ops that pick elements by number have in common: numbers from behind, numbers outside, unsigned types?"""

from __future__ import annotations

from typing import Any

from hjgc.plan_format.ops.declaration import TensorType

WHOLE = ("int64", "int32")
SAME_BITS = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}
"""Types that torch hardly moves by number, and such of the same width that it does."""


def whole_numbers(x: TensorType) -> TensorType:
    """The operand, which must be one of numbers of elements."""
    if x.dtype not in WHOLE:
        raise ValueError(f"expected whole numbers, found {x}")
    return x


def inside(indices: Any, count: int) -> Any:
    """The numbers counted from the front, as int64. Raises IndexError for one outside of `count`."""
    import torch

    if indices.numel() and (int(indices.min()) < -count or int(indices.max()) >= count):
        found = f"{int(indices.min())} to {int(indices.max())}"
        raise IndexError(f"expected numbers of {-count} to {count - 1}, found {found}")
    whole = indices.long()
    return torch.where(whole < 0, whole + count, whole)


def moved(x: Any) -> Any:
    """The same bits in a type that torch moves by number."""
    import torch

    wide = SAME_BITS.get(str(x.dtype).removeprefix("torch."))
    return x if wide is None else x.view(getattr(torch, wide))
