"""What must anything be able to do to be measured?"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """Seconds from the prompt's ids on the host to the first token's id on the host, then the seconds of each further
    token, and all tokens, greedily chosen. `replayed` of `ran` segment runs were graph replays: what a peer without
    graphs has none of."""

    first: float
    further: tuple[float, ...]
    tokens: tuple[int, ...]
    replayed: int = 0
    ran: int = 0


@dataclass
class Startup:
    """Seconds by part. A part may come in several pieces."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Peer(Protocol):
    """One system with one model loaded."""

    startup: Startup
    versions: dict[str, str]

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        """Read the prompt and choose `tokens` tokens, whatever they are: none of them ends the answer."""
        ...

    def settle(self, timeout: float) -> bool:
        """Wait until what earlier answers set off in the background is done. False if it is not after `timeout`."""
        ...

    def details(self) -> dict[str, Any]:
        """What else is worth knowing in the end."""
        ...

    def close(self) -> None: ...


def timed_answer(first: Callable[[], int], further: Callable[[int], int], tokens: int) -> Answer:
    """Calls `first()`, then `further(the token before)` until there are `tokens` of them, and looks at the clock after
    each."""
    began = time.perf_counter()
    chosen = [first()]
    ends = [time.perf_counter()]
    while len(chosen) < tokens:
        chosen.append(further(chosen[-1]))
        ends.append(time.perf_counter())
    steps = tuple(after - before for before, after in pairwise(ends))
    return Answer(ends[0] - began, steps, tuple(chosen))
