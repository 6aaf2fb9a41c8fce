"""How does a person read what became of a node, in 100 columns?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hjgc.tools.console import size
from hjgc.tools.explaining.text import cause_text, costs, head
from hjgc.tools.wrapping import wrapped

MOST_FOUND = 20
"""Launches of one node that are shown in full."""


def node_text(shown: dict[str, Any]) -> Iterator[str]:
    """What became of one node."""
    yield from head(shown)
    launches = shown["launches"]
    yield f"{len(launches)} launch{'es' if len(launches) > 1 else ''} for {shown['node']}"
    for launch in launches[:MOST_FOUND]:
        yield ""
        yield from _launch(launch)
    if len(launches) > MOST_FOUND:
        yield from ("", f"and {len(launches) - MOST_FOUND} more: give a longer part of the name, or --json")


def _launch(launch: dict[str, Any]) -> Iterator[str]:
    yield from wrapped(f"{launch['phase']} {launch['number']}: {launch['name']} ({launch['op']})")
    nodes = _some(launch["nodes"])
    yield from wrapped(nodes or "none is known", first="  nodes   ", rest="          ")
    yield from _runs(launch["segments"])
    for cause in launch["causes"]:
        yield from cause_text(cause)
    for target, calls in launch["kernels"].items():
        yield from _kernels(target, calls)
    yield from costs(launch["cost"], {launch["op"]})


def _runs(segments: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Schedules that run it in the same way, together."""
    by_verdict: dict[str, list[str]] = {}
    for segment in segments:
        by_verdict.setdefault(_verdict(segment), []).append(f"{segment['schedule']} (segment {segment['segment']})")
    for verdict, places in by_verdict.items():
        yield from wrapped(f"{verdict}: {', '.join(places)}", first="  runs    ", rest="          ")
    if not segments:
        yield "  runs    in no schedule"


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _verdict(segment: dict[str, Any]) -> str:
    buckets = segment["buckets"]
    if len(buckets) < 2:
        return str(segment["verdict"])
    return f"{segment['verdict']}, a graph for each of {len(buckets)} buckets of {buckets[0]} to {buckets[-1]} rows"


def _kernels(target: str, calls: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of several ranges of rows: what their axes share once, then each with what is its own."""
    if calls[0]["type"] != "template":
        yield from wrapped(f"{target}: {_other(calls[0])}", first="  kernel  ", rest="          ")
        return
    names = {call["template"] for call in calls}
    shared = set(calls[0]["axes"].items()).intersection(*(call["axes"].items() for call in calls))
    common = _axes(sorted(shared)) if len(names) == 1 else ""
    alone = f" ({_code(calls[0])})" if len(calls) == 1 else ""
    head = f"{target}: {', '.join(sorted(names))} {common}{alone}"
    yield from wrapped(head, first="  kernel  ", rest="          ")
    for call in calls if len(calls) > 1 else ():
        own = sorted(call["axes"].items() - shared) if len(names) == 1 else sorted(call["axes"].items())
        template = "" if len(names) == 1 else f"{call['template']} "
        rows = f"up to {call['rows']} rows: {template}{_axes(own)} ({_code(call)})"
        yield from wrapped(rows, first="          ", rest="            ")


def _axes(axes: Sequence[tuple[str, Any]]) -> str:
    return " ".join(f"{name}={value}" for name, value in axes)


def _code(call: dict[str, Any]) -> str:
    if not call["built"]:
        return "not built ahead"
    registers = f", {call['registers']} registers" if call["registers"] else ""
    return f"{call['threads']} threads, {size(call['shared_bytes'])} shared{registers}"


def _other(call: dict[str, Any]) -> str:
    match call["type"]:
        case "reference":
            return "the op's reference"
        case "host":
            return f"the caller's {call['callback']}"
        case _:
            return f"{call['library']} {call['routine']}"
