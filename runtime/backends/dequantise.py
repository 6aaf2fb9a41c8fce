"""Which numbers do the rows of a quantised source stand for? (q - zero point) * scale, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.quantised import grid, row_bytes, zero_row_bytes
from hjgc.plan_format.structs import Blocks, Part, Source
from hjgc.runtime.backends.element_types import convert

Read = Callable[[int, int, int], NDArray[np.uint8]]
"""`length` bytes at `offset` of a file, from (file, offset, length)."""


def dequantised(source: Source, blocks: Blocks, low: int, high: int, read: Read) -> NDArray[np.float32]:
    """Rows [low, high) of the source, as it lies: float32 [high - low, columns]."""
    columns, width = source.shape[1], row_bytes(source, blocks)
    packed = read(source.file, source.offset + low * width, (high - low) * width).reshape(high - low, width)
    numbers = _unpacked(packed, blocks.bits, blocks.signed)
    first, last = (low, high) if blocks.axis == 1 else (low // blocks.size, -(-high // blocks.size))
    scales = _scales(blocks.scales, grid(source, blocks)[1], first, last, read)
    zeros = _zeros(source, blocks, first, last, read)
    if blocks.axis == 1:
        shape = (high - low, -1, blocks.size)
        return ((numbers.reshape(shape) - zeros[..., None]) * scales[..., None]).reshape(high - low, -1)[:, :columns]
    rows = np.arange(low, high) // blocks.size - first
    return (numbers - zeros[rows]) * scales[rows]


def _scales(part: Part, columns: int, first: int, last: int, read: Read) -> NDArray[np.float32]:
    """Rows of scales."""
    width = columns * ITEM_BYTES[part.dtype]
    raw = read(part.file, part.offset + first * width, (last - first) * width)
    scales = np.empty((last - first, columns), np.float32)
    convert(raw, part.dtype, scales.reshape(-1).view(np.uint8), "float32")
    return scales


def _zeros(source: Source, blocks: Blocks, first: int, last: int, read: Read) -> NDArray[np.float32]:
    """Rows of zero points."""
    columns = grid(source, blocks)[1]
    if blocks.zeros is None:
        return np.full((last - first, columns), 0 if blocks.signed else 1 << (blocks.bits - 1), np.float32)
    width = zero_row_bytes(source, blocks)
    raw = read(blocks.zeros.file, blocks.zeros.offset + first * width, (last - first) * width)
    return _unpacked(raw.reshape(last - first, width), blocks.bits, blocks.signed)[:, :columns]


def _unpacked(packed: NDArray[np.uint8], bits: int, signed: bool) -> NDArray[np.float32]:
    """The numbers in rows of bytes, low half first."""
    if bits == 8:
        whole: NDArray[Any] = packed.view(np.int8) if signed else packed
        return whole.astype(np.float32)
    numbers = np.stack((packed & 15, packed >> 4), axis=-1).reshape(packed.shape[0], -1).astype(np.float32)
    return np.where(numbers > 7, numbers - 16, numbers) if signed else numbers
