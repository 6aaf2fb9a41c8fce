"""What did a session capture, refuse and serve, and why?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hjgc.runtime.backend import spell_rows
from hjgc.runtime.route import Route, Router
from hjgc.runtime.runner import DynamicRunner, SegmentRunner, State, spell_segments
from hjgc.runtime.turns import Turns
from hjgc.runtime.worker import CaptureWorker


def make_report(
    name: str, target: str, router: Router, worker: CaptureWorker, turns: Turns, memory: Mapping[str, int]
) -> dict[str, Any]:
    """Everything, as JSON takes it: one entry for each static segment and bucket (of a function, and sizes that calls
    had lately) and each dynamic segment, then the worker, the budget, the requests, the steps launched ahead, the
    memory, and sums. An entry from one segment to a later `last_segment` is of all between them, as one."""
    ahead = router.ahead
    with worker.lock:
        segments = [entry for routes in router.routes.values() for route in routes for entry in _entries(route)]
        budget = worker.budget
        return {
            "model": name,
            "target": target,
            "segments": segments,
            "worker": worker.numbers(),
            "budget": {
                "limit": budget.limit,
                "used": budget.used,
                "peak": budget.peak,
                "evictions": budget.evictions,
            },
            "requests": {**turns.counts(), "waiting": turns.waiting, "device_errors": router.device_errors},
            "launch_ahead": {
                "steps": ahead.steps,
                "overruns": ahead.overruns,
                "failed": ahead.failed,
                "off": dict(ahead.off),
            },
            "memory": dict(memory),
            "totals": {**_totals(segments, worker), "outside_buckets": router.outside_buckets},
        }


def _entries(route: Route) -> list[dict[str, Any]]:
    if isinstance(route, DynamicRunner):
        return [_dynamic_entry(route)]
    return [_static_entry(runner) for runner in route.runners]


def _static_entry(runner: SegmentRunner) -> dict[str, Any]:
    return {
        "kind": "static",
        "phase": runner.phase,
        "schedule": runner.schedule,
        "segment": runner.segment,
        "last_segment": runner.last_segment,
        "key": runner.bucket if isinstance(runner.bucket, int) else list(runner.bucket),
        "launches": len(runner.launches),
        "state": str(runner.state),
        "hits": runner.hits,
        "plain_runs": runner.plain_runs,
        "bytes": runner.bytes,
        "in_use": runner.uses,
        "aborted_checks": runner.aborted_checks,
        "why": runner.why,
        "quarantine": runner.report,
        "history": list(runner.history),
    }


def _dynamic_entry(runner: DynamicRunner) -> dict[str, Any]:
    return {
        "kind": "dynamic",
        "phase": runner.phase,
        "schedule": runner.schedule,
        "segment": runner.segment,
        "launches": runner.launches,
        "runs": runner.runs,
        "reasons": [
            {
                "launch": reason.launch,
                "code": str(reason.code),
                "sentence": reason.code.sentence,
                "chain": list(reason.chain),
            }
            for reason in runner.reasons
        ],
    }


def _totals(segments: list[dict[str, Any]], worker: CaptureWorker) -> dict[str, int]:
    """`plain_runs` counts the static segments that ran without a graph; `dynamic_runs` those that can have none. Hits
    and plain runs are also those of sizes that have no entry any more."""
    static = [entry for entry in segments if entry["kind"] == "static"]
    states = Counter(entry["state"] for entry in static)
    sums = {name: sum(entry[name] for entry in static) for name in ("hits", "plain_runs", "bytes")}
    sums["hits"] += worker.retired_hits
    sums["plain_runs"] += worker.retired_plain_runs
    dynamic = sum(entry["runs"] for entry in segments if entry["kind"] == "dynamic")
    return {**sums, "dynamic_runs": dynamic, **{state.lower(): states[state] for state in State}}


def flat_numbers(report: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of a report, by dotted name: `totals.hits`, `segment.decode.default.0.1.hits`, ..."""
    numbers: dict[str, int | float] = {}
    for part in ("worker", "budget", "requests", "launch_ahead", "memory", "totals"):
        numbers.update(_prefixed(part, report[part]))
    numbers.update(_prefixed("launch_ahead.off", report["launch_ahead"]["off"]))
    for entry in report["segments"]:
        segments = spell_segments(entry["segment"], entry.get("last_segment", entry["segment"]))
        place = [entry["phase"], entry["schedule"], segments]
        if "key" in entry:
            key = entry["key"]
            place.append(spell_rows(tuple(key) if isinstance(key, list) else key))
        counters = {name: value for name, value in entry.items() if name not in ("segment", "last_segment", "key")}
        numbers.update(_prefixed(".".join(["segment", *place]), counters))
    if report["islands"] is not None:
        numbers.update(_prefixed("islands", report["islands"]))
    if report["code"] is not None:
        numbers["code.fallback"] = int(report["code"]["fallback"])
        numbers["code.swaps"] = len(report["code"]["swaps"])
        numbers.update(_prefixed("code.just_in_time", report["code"]["just_in_time"]))
    numbers["worker.alive"] = int(report["worker"]["state"] == "running")
    return numbers


def _prefixed(prefix: str, entries: Mapping[str, Any]) -> dict[str, int | float]:
    return {f"{prefix}.{name}": value for name, value in entries.items() if isinstance(value, int | float)}
