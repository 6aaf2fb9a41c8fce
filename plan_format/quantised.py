"""How many bytes does a quantised source take, and where do its rows lie?"""

from __future__ import annotations

from hjgc.plan_format.structs import Blocks, Source


def row_bytes(source: Source, blocks: Blocks) -> int:
    """Bytes from one row of numbers to the next. Along axis 0 rows are not filled up: an odd row of half bytes has no
    such number, and `verify` refuses it."""
    columns = source.shape[1]
    if blocks.axis == 1:
        columns = -(-columns // blocks.size) * blocks.size
    return columns * blocks.bits // 8


def grid(source: Source, blocks: Blocks) -> tuple[int, int]:
    """Rows and columns of scales."""
    rows, columns = source.shape
    if blocks.axis == 1:
        return rows, -(-columns // blocks.size)
    return -(-rows // blocks.size), columns


def zero_row_bytes(source: Source, blocks: Blocks) -> int:
    """Bytes from one row of zero points to the next."""
    return -(-grid(source, blocks)[1] * blocks.bits // 8)
