"""How is a measurement read: a table for each figure, then what needs a remark?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hjgc.tools import console

POINTS = ("p50", "p90", "p99", "max")
PARTS = {
    "other": "interpreter",
    "import": "import",
    "plan": "plan",
    "device": "device",
    "weights": "weights",
    "warm-up": "warm-up",
    "first_request": "first token",
    "to_first_token": "all, to first token",
    "first_call": "first call",
    "to_first_outputs": "all, to first outputs",
}


def text(shown: dict[str, Any]) -> Iterator[str]:
    """A measurement on the CPU."""
    yield plan_line(shown["plan"])
    yield from where(shown)
    yield ""
    yield "milliseconds; TTFT: from the prompt's ids to the first token's id, token: each further one"
    yield _latencies(shown)
    yield ""
    yield startup_table((system["name"], system["startup_ms"]) for system in shown["systems"])
    yield from remarks(shown)


def where(shown: Mapping[str, Any]) -> Iterator[str]:
    """The machine, and what ran on it when."""
    cpu, threads = shown["machine"], shown["settings"]["threads"]
    yield f"{cpu['processor']}, {cpu['usable_cores']} of {cpu['cores']} cores usable, {threads} threads"
    yield f"{cpu['system']}, Python {cpu['python']}, {versions(shown)}, {shown['date']}"


def plan_line(plan: Mapping[str, Any]) -> str:
    size = console.size(plan["weight_bytes"])
    return f"{plan['path']}: {plan['model']}, {plan['compute_dtype']}, {size} of weights, context {plan['context']}"


def versions(shown: Mapping[str, Any]) -> str:
    found: dict[str, str] = {}
    for system in shown["systems"]:
        found |= system["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _latencies(shown: dict[str, Any]) -> str:
    columns = ("prompt", "system", *(f"TTFT {point}" for point in POINTS), "TTFT cold")
    columns += (*(f"token {point}" for point in POINTS), "replayed", "tokens")
    rows = [
        (
            row["length"],
            row["system"],
            *points(row["ttft_ms"]),
            number(row["cold_ttft_ms"]),
            *points(row["token_ms"]),
            replayed(row),
            same_tokens(row),
        )
        for row in shown["rows"]
    ]
    return console.table(columns, rows, right=[name for name in columns if name not in ("system", "tokens")])


def points(summary: dict[str, float] | None) -> Iterator[str]:
    for name in POINTS:
        yield "" if summary is None else number(summary[name])


def number(milliseconds: float) -> str:
    return f"{milliseconds:.2f}"


def replayed(row: Mapping[str, Any]) -> str:
    return f"{row['replayed']}/{row['ran']}" if row["ran"] else ""


def same_tokens(row: Mapping[str, Any]) -> str:
    return "the same" if row["tokens_differ_at"] is None else f"differ at {row['tokens_differ_at']}"


def startup_table(rows: Iterable[tuple[str, Mapping[str, float]]]) -> str:
    """Only parts that somebody has."""
    rows = [(name, parts) for name, parts in rows if parts]
    present = [part for part in PARTS if any(part in parts for _, parts in rows)]
    titles = ("start-up, ms", *(PARTS[part] for part in present))
    cells = [(name, *(number(parts[part]) if part in parts else "" for part in present)) for name, parts in rows]
    return console.table(titles, cells, right=titles[1:])


def remarks(shown: Mapping[str, Any]) -> Iterator[str]:
    for system in shown["systems"]:
        segments = system["details"].get("segments", ())
        if segments:
            states = ", ".join(f"{n} {state}" for state, n in Counter(entry["state"] for entry in segments).items())
            yield f"{system['name']}: segments that ran: {states}; graphs hold {_graph_bytes(system)}"
        nodes = system["details"].get("nodes", {})
        if len(nodes) > 1:
            yield f"{system['name']}: nodes: {', '.join(f'{count} {provider}' for provider, count in nodes.items())}"
        if not system["graphs_settled"]:
            yield f"note: {system['name']}: not every graph was ready when the measurement began"
        yield from _refusals(system["name"], segments)
    load = shown["load_average"]["before"]
    if load is not None and load[0] > 1:
        yield f"note: {load[0]} threads were running on this machine before the measurement began"


def _refusals(name: str, segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in segments:
        if entry["why"]:
            yield f"note: {name}: {entry['phase']} {entry['key']}: {entry['state']}: {entry['why']}"


def _graph_bytes(system: Mapping[str, Any]) -> str:
    return console.size(system["details"]["graph_bytes"])
