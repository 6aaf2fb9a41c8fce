"""What do requests notice while every graph is built and checked behind them?

One prompt length after the other is asked for that has no graph yet. While the worker builds and checks it, and only
then, answers to the measured prompts are timed, with a short rest after each, as callers leave one and as checks need
one. When every graph is there, the same is done again for as long: this is what the times are compared with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from hjgc.tools.peers.peer import Peer, counted_answer

ASKING_TOKENS = 2
LEAST_IDLE_ROUNDS = 20


@dataclass(frozen=True)
class Watching:
    """The prompts to time, those that ask for a graph each, the tokens of an answer, the seconds to rest after each and
    those after which to give up."""

    measured: Sequence[Sequence[int]]
    asking: Sequence[Sequence[int]]
    tokens: int
    rest: float
    seconds: float


@dataclass
class _Watcher:
    peer: Peer
    watching: Watching
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    ends: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends = self.clock() + self.watching.seconds

    @property
    def settled(self) -> bool:
        return self.peer.settle(0.0)

    @property
    def late(self) -> bool:
        return self.clock() > self.ends

    def one(self, prompt: Sequence[int]) -> dict[str, Any]:
        answer = counted_answer(self.peer, prompt, self.watching.tokens)
        self.sleep(self.watching.rest)
        return {
            "length": len(prompt),
            "first": answer.first,
            "further": answer.further,
            "replayed": answer.replayed == answer.ran,
        }

    def while_building(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        prompts = cycle(self.watching.measured)
        asking = list(self.watching.asking)
        while (asking or not self.settled) and not self.late:
            if asking:
                self.peer.answer(asking.pop(0), ASKING_TOKENS)
            for _ in self.watching.measured:
                if self.settled or self.late:
                    break
                found.append(self.one(next(prompts)))
        return found

    def idle(self, answers: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        measured = self.watching.measured
        self.ends = self.clock() + self.watching.seconds
        for _ in range(max(LEAST_IDLE_ROUNDS, math.ceil(answers / len(measured)))):
            if self.late:
                break
            found += [self.one(prompt) for prompt in measured]
        return found


def watch(
    peer: Peer,
    watching: Watching,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Every timed answer: while graphs were being built, and with an idle worker."""
    watcher = _Watcher(peer, watching, sleep, clock)
    began = clock()
    building = watcher.while_building()
    seconds = clock() - began
    settled = watcher.settled
    return {"building": building, "seconds": seconds, "settled": settled, "idle": watcher.idle(len(building))}
