"""What must anything be able to do to be measured?"""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True)
class Series:
    """Many answers to one prompt: the times of their first and of their further tokens, and what was answered, each
    different answer once."""

    firsts: tuple[float, ...]
    furthers: tuple[float, ...]
    answers: tuple[tuple[int, ...], ...]
    replayed: int = 0
    ran: int = 0


@dataclass(frozen=True)
class Calls:
    """Seconds of each call of a function, from its inputs on the host to its outputs on the host."""

    seconds: tuple[float, ...]
    replayed: int = 0
    ran: int = 0


@dataclass(frozen=True)
class Counts:
    """`replayed` of `ran` segment runs were graph replays, so far."""

    replayed: int = 0
    ran: int = 0

    def since(self, before: Counts) -> dict[str, int]:
        return {"replayed": self.replayed - before.replayed, "ran": self.ran - before.ran}


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

    def counts(self) -> Counts:
        """Of all answers so far. Never called while one is timed."""
        ...

    def settle(self, timeout: float) -> bool:
        """Wait until what earlier answers set off in the background is done. False if it is not after `timeout`."""
        ...

    def details(self) -> dict[str, Any]:
        """What else is worth knowing in the end."""
        ...

    def close(self) -> None: ...


class CallPeer(Protocol):
    """One system with one function loaded, and the inputs that it is called with."""

    startup: Startup
    versions: dict[str, str]

    def call(self) -> object:
        """The outputs, as the system itself gives them."""
        ...

    def outputs(self) -> dict[str, Any]:
        """Those of one more call, as arrays by name."""
        ...

    def counts(self) -> Counts: ...

    def settle(self, timeout: float) -> bool: ...

    def details(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


def timed_calls(peer: CallPeer, count: int, warm_up: int) -> Calls:
    """`count` calls, one after the other, after `warm_up` that do not count."""
    for _ in range(warm_up):
        peer.call()
    before = peer.counts()
    seconds = tuple(_timed(peer.call) for _ in range(count))
    return Calls(seconds, **peer.counts().since(before))


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def counted_answer(peer: Peer, ids: Sequence[int], tokens: int) -> Answer:
    """An answer that knows how much of it was replayed."""
    before = peer.counts()
    answer = peer.answer(ids, tokens)
    return dataclasses.replace(answer, **peer.counts().since(before))


def series(peer: Peer, ids: Sequence[int], tokens: int, repeat: int, warm_up: int, rest: float = 0.0) -> Series:
    """`repeat` answers after `warm_up` that do not count, `rest` seconds before each."""

    def rested() -> Answer:
        time.sleep(rest)
        return peer.answer(ids, tokens)

    for _ in range(warm_up):
        rested()
    before = peer.counts()
    answers = [rested() for _ in range(repeat)]
    return Series(
        tuple(answer.first for answer in answers),
        tuple(seconds for answer in answers for seconds in answer.further),
        tuple(dict.fromkeys(answer.tokens for answer in answers)),
        **peer.counts().since(before),
    )


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
