"""Which call's arguments does the check of a function's graph get?

Those of the call that asked for the graph: a copy that lives as long as a graph for its sizes is still to be checked.
Together the copies are bounded: where there is no room no graph is asked for, and a later call tries again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np

from hjgc.runtime.backend import Value

SAMPLE_BYTES = 256 << 20
"""That copies may take together; a single one may always be made."""


class Sample:
    """A call's arguments, in their order."""

    def __init__(self, values: Sequence[Value], size: int) -> None:
        self.values, self.bytes = tuple(map(_copied, values)), size


class Samples:
    """The copies that still live."""

    def __init__(self, limit: int = SAMPLE_BYTES) -> None:
        self._limit = limit
        self._living: WeakSet[Sample] = WeakSet()

    @property
    def used(self) -> int:
        return sum(sample.bytes for sample in self._living)

    def take(self, values: Sequence[Value]) -> Sample | None:
        """A copy of these arguments; None if there is no room."""
        size, used = sum(map(_bytes, values)), self.used
        if used and used + size > self._limit:
            return None
        sample = Sample(values, size)
        self._living.add(sample)
        return sample


def _copied(value: Value) -> Value:
    if isinstance(value, list):
        items: list[Any] = value
        return [_copied(item) for item in items]
    return value.copy() if isinstance(value, np.ndarray) else value


def _bytes(value: Value) -> int:
    if isinstance(value, list):
        items: list[Any] = value
        return sum(map(_bytes, items))
    return value.nbytes if isinstance(value, np.ndarray) else 0
