"""What do the kernels that make digests compute?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hjgc.runtime.backends.cuda_digest import FIRST, GOLDEN, SECOND


def digest(data: NDArray[np.uint8], item: int) -> int:
    """Of bytes that are taken as words of `item` bytes: splitmix64 of each with its place, summed modulo 2^64."""
    words = np.ascontiguousarray(data).view(np.uint32 if item == 4 else np.uint8).astype(np.uint64)
    z = words + np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64))
