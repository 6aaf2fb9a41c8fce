"""What must a device be able to do to serve a plan?

A backend owns the memory of one plan: weights, constants, states, parameter block, one arena. The session calls it from
the thread that serves the request, except `build`, `graph_bytes` and `release`, which the capture worker calls from its
own thread while requests run. Nothing here waits for the whole device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], "NDArray[np.float32] | None"]
"""`process(token_ids [L] int32, logits [V] float32)`: change the logits in place, or return others."""


@dataclass(frozen=True)
class MemoryRef:
    """A piece of a plan's memory that launches write: `space` is buffer, state or parameters; `phase` tells whose
    buffers `index` counts (empty for the other spaces)."""

    space: str
    index: int
    phase: str = ""


class Graph(Protocol):
    """A captured segment. `bytes` is the device memory it holds."""

    @property
    def bytes(self) -> int: ...


class BackendRefused(Exception):
    """The device will not build or run this; the message is the driver's own words."""


class Backend(Protocol):
    """One device serving one plan."""

    @property
    def name(self) -> str:
        """The target it runs: `cpu`, `sm_90`, ..."""
        ...

    def write_parameters(self, values: Mapping[str, int | float]) -> None:
        """Set fields of the parameter block, before the launches issued after this call."""
        ...

    def write_history(self, offset: int, ids: Sequence[int]) -> None:
        """Put token ids into the history from `offset` on."""
        ...

    def run(self, phase: str, launches: Sequence[int], tokens: int, stop: Callable[[], bool] | None = None) -> bool:
        """Launch one by one, in order, for `tokens` rows. `stop` is asked between launches; once it says yes, the rest
        is left out. Returns whether all ran."""
        ...

    def call_host(self, phase: str, launch: int, process: LogitsProcessor) -> None:
        """Run a host launch: hand its operands to `process` once they are ready."""
        ...

    def build(self, phase: str, launches: Sequence[int], bucket: int) -> Graph:
        """Build the graph that serves up to `bucket` rows. Raises BackendRefused."""
        ...

    def graph_bytes(self, launches: int) -> int:
        """An estimate of what a graph of so many launches will hold, before it is built."""
        ...

    def replay(self, graph: Any, tokens: int) -> None:
        """Run a captured segment for `tokens` rows, at most its bucket."""
        ...

    def release(self, graph: Any) -> None:
        """Give a graph's memory back. It is not in use."""
        ...

    def snapshot(self, refs: Sequence[MemoryRef], start: int, tokens: int) -> dict[MemoryRef, NDArray[np.uint8]]:
        """A copy of the bytes of each ref, once the work issued so far is done: of a cache the rows `start` to
        `start + tokens`, of a buffer its first `tokens` rows' worth, of anything else all of it."""
        ...

    def restore(self, saved: Mapping[MemoryRef, NDArray[np.uint8]], start: int, tokens: int) -> None:
        """Write a snapshot back to where it came from."""
        ...

    def read_token(self) -> int:
        """The token that the last step sampled, once it is there."""
        ...

    def read_logits(self) -> NDArray[np.float32]:
        """A copy of the last step's logits [V] as float32, once they are there."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...
