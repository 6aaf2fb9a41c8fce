"""How does a fresh process serve: its very first request, those that come while its graphs are built, and each kind of
launch?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hjgc.plan_format.errors import HjgcError
from hjgc.plan_format.structs import Plan, StaticSegment
from hjgc.tools.benching.settings import Settings, spread
from hjgc.tools.benching.times import milliseconds, percentile, summary
from hjgc.tools.benchmarking import CAPTURE_SECONDS, startup
from hjgc.tools.costs import launch_cost
from hjgc.tools.peers.client import PeerProcess
from hjgc.tools.prediction import launch_seconds, prediction

FIRST_TOKENS = 2
WATCHED_TOKENS = 8
REST = 0.1
"""Seconds between two requests while graphs are built: a check needs a gap, and people leave one."""

Tell = Callable[[str], None]
Event = Mapping[str, Any]


def cold(name: str, spec: Mapping[str, Any], settings: Settings, tell: Tell) -> list[dict[str, Any]]:
    """The first request of a process that has captured nothing, a process for each length."""
    rows: list[dict[str, Any]] = []
    for length in spread(settings.lengths, settings.cold):
        tell(f"{name}: a fresh process for {length} tokens")
        with PeerProcess(name, spec, settings.threads) as process:
            answer = process.answer(settings.prompt(length), FIRST_TOKENS)
            rows.append(
                {
                    "system": name,
                    "length": length,
                    "ttft_ms": milliseconds(answer.first),
                    "replayed": answer.replayed,
                    "ran": answer.ran,
                    "startup_ms": startup(process, answer),
                }
            )
    return rows


def capturing(name: str, spec: Mapping[str, Any], plan: Plan, settings: Settings, tell: Tell) -> dict[str, Any] | None:
    """Fresh processes, watched while every graph for a prompt is built and checked. None if none was wanted."""
    runs: list[dict[str, Any]] = []
    for number in range(settings.capturing):
        tell(f"{name}: watched while it captures, {number + 1} of {settings.capturing}")
        with PeerProcess(name, spec, settings.threads) as process:
            runs.append(process.watch(_watching(plan, settings)) | _details(process))
    return judged(name, runs) if runs else None


def launches(name: str, spec: Mapping[str, Any], plan: Plan, settings: Settings, tell: Tell) -> list[dict[str, Any]]:
    """What each kind of launch takes, beside its prediction."""
    tell(f"{name}: its launches, by kind")
    with PeerProcess(name, spec, settings.threads) as process:
        rows = process.launches()
    return [{**row, "predicted_us": _predicted(plan, row)} for row in rows]


def _predicted(plan: Plan, row: Mapping[str, Any]) -> float | None:
    """Of the first of the launches: the layers of a model are alike."""
    known, phase = prediction(plan), plan.phase(row["phase"])
    if known.chip is None:
        return None
    first, rows, start = phase.launches[row["launches"][0]], row["rows"], row["start"]
    cost = launch_cost(plan, phase, first, tokens=rows, start=start, target=known.target)
    return round(launch_seconds(cost, known.chip) * 1e6, 3)


def _details(process: PeerProcess) -> dict[str, Any]:
    details = process.details()
    states = Counter(entry["state"] for entry in details.get("segments", ()))
    return {"states": dict(states)} | {name: details.get(name) for name in ("worker", "graph_bytes", "device_memory")}


def _watching(plan: Plan, settings: Settings) -> dict[str, Any]:
    return {
        "measured": [settings.prompt(length) for length in settings.lengths],
        "asking": [settings.prompt(length) for length in graph_lengths(plan)],
        "tokens": min(settings.decode, WATCHED_TOKENS) + 1,
        "rest": REST,
        "seconds": CAPTURE_SECONDS,
    }


def graph_lengths(plan: Plan) -> list[int]:
    """A prompt length for each graph that a prompt in one piece can have."""
    lengths = {
        bucket
        for segment in plan.phase("prefill").schedule().segments
        if isinstance(segment, StaticSegment)
        for bucket in segment.key.buckets
    }
    return sorted(length for length in lengths if length + FIRST_TOKENS <= plan.model.context)


def judged(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was seen, by length, and what the p99 of replays lost to the building."""
    building = [event for run in runs for event in run["building"]]
    idle = [event for run in runs for event in run["idle"]]
    replayed = [event for event in building if event["replayed"]]
    lengths = list(dict.fromkeys(event["length"] for event in [*building, *idle]))
    return {
        "system": name,
        "runs": len(runs),
        "settled": all(run["settled"] for run in runs),
        "seconds": [round(run["seconds"], 3) for run in runs],
        **{name: [run[name] for run in runs] for name in ("worker", "states", "graph_bytes", "device_memory")},
        "rows": [_row(length, building, idle) for length in lengths],
        "token_ms": {
            "replayed": summary(_further(replayed)),
            "plain": summary(_further([event for event in building if not event["replayed"]])),
            "idle": summary(_further(idle)),
        },
        "p99_of_idle": {
            "ttft": _ratio(_relative(replayed, idle), _relative(idle, idle)),
            "token": _ratio(_further(replayed), _further(idle)),
        },
    }


def _row(length: int, building: Sequence[Event], idle: Sequence[Event]) -> dict[str, Any]:
    here = [event for event in building if event["length"] == length]
    return {
        "length": length,
        "replayed_ms": summary([event["first"] for event in here if event["replayed"]]),
        "plain_ms": summary([event["first"] for event in here if not event["replayed"]]),
        "idle_ms": summary([event["first"] for event in idle if event["length"] == length]),
    }


def _further(events: Sequence[Event]) -> list[float]:
    return [seconds for event in events for seconds in event["further"]]


def _relative(events: Sequence[Event], idle: Sequence[Event]) -> list[float]:
    """Times to the first token as parts of the idle median at their length, so that lengths can be put together."""
    by_length: dict[int, list[float]] = {}
    for event in idle:
        by_length.setdefault(event["length"], []).append(event["first"])
    medians = {length: percentile(seconds, 0.5) for length, seconds in by_length.items()}
    return [event["first"] / medians[event["length"]] for event in events if event["length"] in medians]


def _ratio(values: Sequence[float], idle: Sequence[float]) -> float | None:
    try:
        return round(percentile(values, 0.99) / percentile(idle, 0.99), 4)
    except HjgcError:  # nothing was replayed meanwhile, or nothing afterwards
        return None
