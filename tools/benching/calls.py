"""How long do calls of a function take, launch by launch and by graphs, beside ONNX Runtime?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hjgc.plan_format.structs import Phase
from hjgc.runtime.arguments import argument
from hjgc.tools.benching.times import milliseconds, summary
from hjgc.tools.benchmarking import CAPTURE_SECONDS, PAUSE, Tell, load_average, loading
from hjgc.tools.calling import read_arrays
from hjgc.tools.functions.comparing import coarsest, compare, different, tolerance_of
from hjgc.tools.peers.client import PeerProcess
from hjgc.tools.peers.peer import Calls

SCHEMA = "hjgc-bench-calls-1"
TURNS = 10
"""Into so many turns the calls of a system are cut, where systems take turns: what disturbs one disturbs all."""
WARM_UP = 1
"""Calls at the beginning of a turn that do not count: others had the caches before."""
REFERENCE = "ort"


@dataclass(frozen=True)
class CallSettings:
    """`calls` of each system that count, with inputs of these `sizes`: those of a file, or `made_up` as these words
    say."""

    calls: int
    threads: int
    seed: int
    sizes: Mapping[str, int]
    feed: str | None
    made_up: str | None

    def shown(self) -> dict[str, Any]:
        names = ("calls", "threads", "seed", "feed", "made_up")
        return {name: getattr(self, name) for name in names} | {"sizes": dict(self.sizes)}


@dataclass
class Measured:
    """One system: its first call, how long until its graphs were ready, and the calls that count."""

    process: PeerProcess
    first: float
    settled: bool
    settling: float
    turns: list[Calls]
    details: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @property
    def seconds(self) -> list[float]:
        return [second for turn in self.turns for second in turn.seconds]


def bench_calls(
    phase: Phase,
    specs: Mapping[str, Mapping[str, Any]],
    settings: CallSettings,
    folder: Path,
    tell: Tell,
    *,
    alone: bool,
) -> dict[str, Any]:
    """Measure each named system, all of them in this run: in turns, or where they would share a device each `alone`.
    What they give is left in `folder` and compared. Raises HjgcError where one fails."""
    began, load = datetime.now(UTC), load_average()
    found: dict[str, Measured] = {}
    for group in [{name: spec} for name, spec in specs.items()] if alone else [specs]:
        found |= _together(phase, group, settings, folder, tell)
    return {
        "schema": SCHEMA,
        "date": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "load_average": {"before": load, "after": load_average()},
        "settings": settings.shown(),
        "systems": [_system(name, measured) for name, measured in found.items()],
        "rows": _rows(phase, found),
    }


def _together(
    phase: Phase, specs: Mapping[str, Mapping[str, Any]], settings: CallSettings, folder: Path, tell: Tell
) -> dict[str, Measured]:
    """They are started one after the other, and then take turns, each time beginning with another."""
    with ExitStack() as stack:
        found: dict[str, Measured] = {}
        for name, spec in specs.items():
            tell(f"start {name}")
            process = stack.enter_context(PeerProcess(name, spec, settings.threads))
            found[name] = _met(name, process, tell)
        _take_turns(list(found.values()), settings.calls, tell)
        for measured in found.values():
            measured.details = measured.process.details()
            measured.outputs = _outputs(phase, measured.process, folder / "outputs.npz")
        return found


def _take_turns(order: Sequence[Measured], calls: int, tell: Tell) -> None:
    """All calls that count; whoever is alone makes them in one turn."""
    turns = parts(calls, TURNS if len(order) > 1 else 1)
    for number, size in enumerate(turns):
        tell(f"turn {number + 1} of {len(turns)}")
        first = number % len(order)
        for measured in [*order[first:], *order[:first]]:
            time.sleep(PAUSE)
            measured.turns.append(measured.process.calls(size, WARM_UP))


def _met(name: str, process: PeerProcess, tell: Tell) -> Measured:
    """The first call, and whatever is built in the background because of it."""
    (first,) = process.calls(1).seconds
    began = time.perf_counter()
    settled = process.settle(CAPTURE_SECONDS)
    if not settled:
        tell(f"{name}: not every graph was ready after {CAPTURE_SECONDS:.0f} s")
    return Measured(process, first, settled, time.perf_counter() - began, [], {}, {})


def parts(calls: int, turns: int) -> list[int]:
    """So many calls in as many turns, which differ by one call at most; none is empty."""
    sizes = [(calls + turn) // turns for turn in range(turns)]
    return [size for size in sizes if size]


def _outputs(phase: Phase, process: PeerProcess, path: Path) -> dict[str, Any]:
    """What one more call gives; what a file keeps as bits, in the type that it has."""
    process.outputs(path)
    tensors = {port.name: port for port in phase.results if port.type.startswith("tensor(")}
    arrays = read_arrays(path)
    return {name: argument(tensors[name], array) if name in tensors else array for name, array in arrays.items()}


def _system(name: str, measured: Measured) -> dict[str, Any]:
    process = measured.process
    return {
        "name": name,
        "versions": process.versions,
        "startup_ms": loading(process)
        | {
            "first_call": milliseconds(measured.first),
            "to_first_outputs": milliseconds(process.process_seconds + measured.first),
        },
        "graphs_settled": measured.settled,
        "details": measured.details,
    }


def _rows(phase: Phase, found: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """Outputs are compared with those of ONNX Runtime if it was measured, else with those of the first."""
    reference = found.get(REFERENCE) or next(iter(found.values()))
    beside = summary(reference.seconds) if REFERENCE in found else None
    least = tolerance_of(coarsest(phase))
    return [_row(name, measured, beside, _differs(measured, reference, least)) for name, measured in found.items()]


def _row(name: str, measured: Measured, beside: Mapping[str, float] | None, differs: str | None) -> dict[str, Any]:
    points = summary(measured.seconds)
    assert points is not None, "at least one call counts"
    captures = measured.details.get("graph_bytes")
    return {
        "system": name,
        "call_ms": points,
        "of_ort": None if beside is None else round(points["p50"] / beside["p50"], 4),
        "first_call_ms": milliseconds(measured.first),
        "captured_ms": milliseconds(measured.settling) if captures else None,
        "replayed": sum(turn.replayed for turn in measured.turns),
        "ran": sum(turn.ran for turn in measured.turns),
        "host_bytes": measured.details["host_bytes"],
        "outputs_differ_at": differs,
    }


def _differs(measured: Measured, reference: Measured, least: float) -> str | None:
    """The first output that differs by more than the tolerances of `hjgc verify`."""
    if set(measured.outputs) != set(reference.outputs):
        return "their names"
    first = different(compare(measured.outputs, reference.outputs, least=least))
    return None if first is None else first.name
