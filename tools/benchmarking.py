"""How long do the first and the further tokens take, beside peers that answer the same prompts in the same run?"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hjgc.plan_format.errors import HjgcError
from hjgc.tools.peers.client import PeerProcess
from hjgc.tools.peers.peer import Answer

SCHEMA = "hjgc-bench-1"
PAUSE = 0.25
"""Seconds between two peers' turns: threads that still spin for work after an answer come to rest."""
CAPTURE_SECONDS = 120.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """`lengths` of the prompts in tokens, `decode` further tokens for each, `repeat` warm answers for each."""

    lengths: tuple[int, ...]
    decode: int
    repeat: int
    threads: int
    seed: int
    vocabulary: int


@dataclass
class Cell:
    """One system at one prompt length: its first answer there, and the warm ones."""

    cold: Answer
    warm: list[Answer] = field(default_factory=list[Answer])


@dataclass
class Measured:
    """One system. `first` is the very first answer of its process."""

    process: PeerProcess
    cells: dict[int, Cell] = field(default_factory=dict[int, Cell])
    settled: bool = True

    @property
    def first(self) -> Answer:
        return next(iter(self.cells.values())).cold


def bench(specs: Mapping[str, Mapping[str, Any]], settings: Settings, tell: Tell) -> dict[str, Any]:
    """Measure each named system, all of them in this run: they start one after the other, then take turns, prompt by
    prompt, so that whatever else the machine does meets them alike. Raises HjgcError where one fails."""
    began = datetime.now(UTC)
    load = _load()
    with ExitStack() as stack:
        systems: dict[str, Measured] = {}
        for name, spec in specs.items():
            tell(f"start {name}")
            systems[name] = Measured(stack.enter_context(PeerProcess(name, spec, settings.threads)))
            _meet(name, systems[name], settings, tell)
        for number in range(settings.repeat):
            tell(f"round {number + 1} of {settings.repeat}")
            _round(systems, settings, number)
        return {
            "schema": SCHEMA,
            "date": began.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
            "load_average": {"before": load, "after": _load()},
            "settings": {
                "lengths": list(settings.lengths),
                "decode": settings.decode,
                "repeat": settings.repeat,
                "threads": settings.threads,
                "seed": settings.seed,
            },
            "systems": [_system(name, measured, settings) for name, measured in systems.items()],
            "rows": _rows(systems, settings),
        }


def prompt(settings: Settings, length: int) -> list[int]:
    """The same random tokens for every system and every repetition."""
    return np.random.default_rng([settings.seed, length]).integers(0, settings.vocabulary, length).tolist()


def _meet(name: str, measured: Measured, settings: Settings, tell: Tell) -> None:
    """The first answer at each length, and whatever is built in the background because of it."""
    for length in settings.lengths:
        measured.cells[length] = Cell(_answer(measured, settings, length))
        if not measured.process.settle(CAPTURE_SECONDS):
            measured.settled = False
            tell(f"{name}: not every graph was ready after {CAPTURE_SECONDS:.0f} s")


def _round(systems: Mapping[str, Measured], settings: Settings, number: int) -> None:
    """One warm answer from everybody at each length. Each round begins with another system."""
    order = list(systems.values())
    order = order[number % len(order) :] + order[: number % len(order)]
    for length in settings.lengths:
        for measured in order:
            time.sleep(PAUSE)
            measured.cells[length].warm.append(_answer(measured, settings, length))


def _answer(measured: Measured, settings: Settings, length: int) -> Answer:
    return measured.process.answer(prompt(settings, length), settings.decode + 1)


def _system(name: str, measured: Measured, settings: Settings) -> dict[str, Any]:
    """`other` is the process's own start: interpreter, our modules, the answer that it is ready."""
    process = measured.process
    parts = {part: _ms(seconds) for part, seconds in process.startup.items()}
    other = process.process_seconds - sum(process.startup.values())
    return {
        "name": name,
        "versions": process.versions,
        "startup_ms": parts
        | {
            "other": _ms(other),
            "first_request": _ms(measured.first.first),
            "to_first_token": _ms(process.process_seconds + measured.first.first),
        },
        "first_request_length": settings.lengths[0],
        "graphs_settled": measured.settled,
        "details": process.details(),
    }


def _rows(systems: Mapping[str, Measured], settings: Settings) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for length in settings.lengths:
        reference = next(iter(systems.values())).cells[length].cold.tokens
        rows += [_row(name, length, measured.cells[length], reference) for name, measured in systems.items()]
    return rows


def _row(name: str, length: int, cell: Cell, reference: Sequence[int]) -> dict[str, Any]:
    answers = [cell.cold, *cell.warm]
    return {
        "system": name,
        "length": length,
        "ttft_ms": summary([answer.first for answer in cell.warm]),
        "token_ms": summary([seconds for answer in cell.warm for seconds in answer.further]),
        "cold_ttft_ms": _ms(cell.cold.first),
        "cold_token_ms": _ms(percentile(cell.cold.further, 0.5)) if cell.cold.further else None,
        "replayed": sum(answer.replayed for answer in cell.warm),
        "ran": sum(answer.ran for answer in cell.warm),
        "tokens": list(cell.cold.tokens),
        "tokens_differ_at": min(
            (place for answer in answers if (place := first_difference(answer.tokens, reference)) is not None),
            default=None,
        ),
    }


def first_difference(tokens: Sequence[int], reference: Sequence[int]) -> int | None:
    """The first place where the two do not agree; None if they are the same."""
    pairs = enumerate(zip(tokens, reference, strict=True))
    return next((place for place, (one, other) in pairs if one != other), None)


def summary(seconds: Sequence[float]) -> dict[str, float | int] | None:
    """Milliseconds; None where nothing was measured."""
    if not seconds:
        return None
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    points = {name: _ms(percentile(seconds, share)) for name, share in shares.items()}
    return {"count": len(seconds), "mean": _ms(sum(seconds) / len(seconds)), **points, "max": _ms(max(seconds))}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank): always one that was measured.
    Raises HjgcError for no values."""
    if not values:
        raise HjgcError("expected at least one measurement, found none")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 4)


def _load() -> list[float] | None:
    """How many threads wanted to run, on average over the last 1, 5 and 15 minutes."""
    return [round(number, 2) for number in os.getloadavg()] if hasattr(os, "getloadavg") else None
