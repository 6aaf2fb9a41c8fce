"""How long do the first and the further tokens take, beside peers that answer the same prompts in the same run?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.times import first_difference, milliseconds, percentile, summary
from hjgc.tools.peers.client import PeerProcess
from hjgc.tools.peers.peer import Answer

SCHEMA = "hjgc-bench-1"
PAUSE = 0.25
"""Seconds between two peers' turns: threads that still spin for work after an answer come to rest."""
CAPTURE_SECONDS = 120.0
"""How long to wait for graphs that answers have asked for."""

Tell = Callable[[str], None]


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
    load = load_average()
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
            "load_average": {"before": load, "after": load_average()},
            "settings": settings.shown(),
            "systems": [_system(name, measured, settings) for name, measured in systems.items()],
            "rows": _rows(systems, settings),
        }


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
    return measured.process.answer(settings.prompt(length), settings.decode + 1)


def _system(name: str, measured: Measured, settings: Settings) -> dict[str, Any]:
    process = measured.process
    return {
        "name": name,
        "versions": process.versions,
        "startup_ms": startup(process, measured.first),
        "first_request_length": settings.lengths[0],
        "graphs_settled": measured.settled,
        "details": process.details(),
    }


def startup(process: PeerProcess, first: Answer) -> dict[str, float]:
    """Milliseconds by part, and their sum: from the start of the process to its first token."""
    return loading(process) | {
        "first_request": milliseconds(first.first),
        "to_first_token": milliseconds(process.process_seconds + first.first),
    }


def loading(process: PeerProcess) -> dict[str, float]:
    """Milliseconds by part until it is ready. `other` is the process's own start: interpreter, our modules, the answer
    that it is ready."""
    parts = {part: milliseconds(seconds) for part, seconds in process.startup.items()}
    return parts | {"other": milliseconds(process.process_seconds - sum(process.startup.values()))}


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
        "cold_ttft_ms": milliseconds(cell.cold.first),
        "cold_token_ms": milliseconds(percentile(cell.cold.further, 0.5)) if cell.cold.further else None,
        "replayed": sum(answer.replayed for answer in cell.warm),
        "ran": sum(answer.ran for answer in cell.warm),
        "tokens": list(cell.cold.tokens),
        "tokens_differ_at": min(
            (place for answer in answers if (place := first_difference(answer.tokens, reference)) is not None),
            default=None,
        ),
    }


def load_average() -> list[float] | None:
    """How many threads wanted to run, on average over the last 1, 5 and 15 minutes."""
    return [round(number, 2) for number in os.getloadavg()] if hasattr(os, "getloadavg") else None
