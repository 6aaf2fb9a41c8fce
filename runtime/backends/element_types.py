"""How does numpy, which has no bfloat16, convert between the element types of weights and logits?

Always to the nearest value of the other type, ties to even, as torch does; what is too large becomes infinite, what was
no number stays none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

FLOATS = ("float32", "float16", "bfloat16")
BLOCK = 1 << 15
"""Elements converted at once: what passes between two steps stays in the core's own cache."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """What numpy calls elements of this type; of bfloat16, the bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def to_float32(data: Bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(dtype).astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> Bytes:
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype != "bfloat16":
        with np.errstate(over="ignore", invalid="ignore"):
            return flat.astype(dtype).view(np.uint8)
    rounded = np.empty(flat.size, np.uint16)
    for block in _blocks(flat.size):
        _round_to_bfloat16(flat[block], rounded[block])
    return rounded.view(np.uint8)


def convert(source: Bytes, of: str, target: Bytes, to: str) -> None:
    """Fill `target` with the elements of `source`, both given as bytes, both of types in FLOATS. Holds no lock of the
    interpreter's while it works, and little memory."""
    if of == to:
        target[:] = source
    elif of == "float32":
        _convert_float32(source.view(np.float32), target, to)
    else:
        _look_up(source.view(np.uint16), of, target, to)


def _convert_float32(values: NDArray[np.float32], target: Bytes, to: str) -> None:
    typed = target.view(np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(values.size):
            if to == "bfloat16":
                _round_to_bfloat16(values[block], typed[block])
            else:
                np.copyto(typed[block].view(np.float16), values[block], casting="unsafe")


def _look_up(values: NDArray[np.uint16], of: str, target: Bytes, to: str) -> None:
    """Numpy takes 60 ns for a float16 too small or too large for arithmetic without flags; a table has no such
    corners."""
    table = _table(of, to)
    typed = target.view(table.dtype)
    for block in _blocks(values.size):
        table.take(values[block], out=typed[block], mode="clip")  # "raise" would copy the result once more


@lru_cache
def _table(of: str, to: str) -> NDArray[Any]:
    """The bits in the one type for each 16 bits in the other."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    return from_float32(to_float32(every, of), to).view(np.uint32 if to == "float32" else np.uint16)


def _round_to_bfloat16(values: NDArray[np.float32], target: NDArray[np.uint16]) -> None:
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    np.right_shift(rounded, 16, out=target, dtype=np.uint32, casting="unsafe")
    nans = np.isnan(values)
    if nans.any():
        target[nans] = 0x7FC0


def _blocks(count: int) -> list[slice]:
    return [slice(begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK)]
