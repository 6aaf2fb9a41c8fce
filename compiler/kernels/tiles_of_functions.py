"""Which tile of a product of a function is best on a chip, and into how many parts are its sums cut?

By a rule: the largest tile of which there are enough for half of the multiprocessors; of sums that are long, parts. On
an H200, of 692 tiles and parts for the four products of a BERT layer at 128 tokens, it is within 5% of the fastest
(docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from hjgc.compiler.kernels.declaration import AxisValue

MOST_OPERANDS = 8
"""Of one expression, and of what is put one behind the other."""
MOST_BESIDE = 6
"""Operands that a kernel loads besides what it computes."""
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 170}
USUAL_PROCESSORS = 100
ENOUGH = 0.5
"""Of the multiprocessors that have a tile."""
TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (32, 32), (16, 64), (16, 32))
FULL = 0.8
"""Of the multiprocessors that have a tile once sums are cut into parts."""
LEAST_SPAN = 192
"""Columns that a part of a sum has at least."""
MOST_PARTS = 8


def matmul_tile(
    target: str, batch: int, rows: int, outputs: int, depth: int, *, dtype: str, parts: int
) -> Mapping[str, AxisValue]:
    """For sizes at their most."""
    wide = dtype == "float32"
    enough = PROCESSORS.get(target, USUAL_PROCESSORS) * ENOUGH
    fitting = [(m, n) for m, n in TILES if m <= max(16, _power(rows)) and n <= max(32, _power(outputs))]
    found = next(((m, n) for m, n in fitting if _count(batch, rows, outputs, m, n) * max(1, parts) >= enough), None)
    block_m, block_n = found or fitting[-1]
    block_k = 32 if wide else (64 if depth >= 64 else max(16, _power(depth)))
    small = block_m * block_n <= 64 * 64
    return {
        "block_m": block_m,
        "block_n": block_n,
        "block_k": block_k,
        "stages": 3 if wide or not small else 6,
        "warps": 8 if block_m * block_n >= 128 * 128 else 4,
    }


def matmul_parts(target: str, rows: int, outputs: int, depth: int) -> int:
    """Into how many parts the sums of a product of two matrices are cut; 1 if they are not."""
    tiles = max(1, _count(1, rows, outputs, 64, 64))
    wanted = int(PROCESSORS.get(target, USUAL_PROCESSORS) * FULL / tiles)
    return max(1, min(wanted, depth // LEAST_SPAN, MOST_PARTS))


def _count(batch: int, rows: int, outputs: int, block_m: int, block_n: int) -> int:
    return batch * -(-rows // block_m) * -(-outputs // block_n)


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()
