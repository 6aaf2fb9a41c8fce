"""How is a measurement of a function read: a line for each system, then what needs a remark?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hjgc.tools import console
from hjgc.tools.benching.text import POINTS, number, points, remarks, replayed, startup_table, where
from hjgc.tools.functions.text import inputs_line


def text(shown: Mapping[str, Any]) -> Iterator[str]:
    """A measurement on whatever device."""
    plan, settings = shown["plan"], shown["settings"]
    size = console.size(plan["weight_bytes"])
    yield f"{plan['path']}: {plan['model']}, a function for {', '.join(plan['targets'])}, {size} of weights"
    yield from where(shown)
    sizes = ", ".join(f"{name} {value}" for name, value in settings["sizes"].items()) or "no open sizes"
    yield f"{inputs_line(settings)}; {sizes}; {settings['calls']} calls of each system count"
    yield ""
    yield "milliseconds; call: from the inputs on the host to the outputs on the host"
    yield _latencies(shown)
    yield ""
    yield startup_table((system["name"], system["startup_ms"]) for system in shown["systems"])
    yield from _segments(shown)
    yield from remarks(shown)


def _latencies(shown: Mapping[str, Any]) -> str:
    beside = any(row["of_ort"] is not None for row in shown["rows"])
    columns = ("system", *(f"call {point}" for point in POINTS), *(["of ort"] if beside else []), "first call")
    columns += ("captured in", "replayed", "host memory", "outputs")
    rows = [
        (
            row["system"],
            *points(row["call_ms"]),
            *([f"{row['of_ort']:.2f}"] if beside else []),
            number(row["first_call_ms"]),
            "" if row["captured_ms"] is None else number(row["captured_ms"]),
            replayed(row),
            "" if row["host_bytes"] is None else console.size(row["host_bytes"]),
            _same(row["outputs_differ_at"]),
        )
        for row in shown["rows"]
    ]
    return console.table(columns, rows, right=[name for name in columns if name not in ("system", "outputs")])


def _same(differ_at: str | None) -> str:
    return "the same" if differ_at is None else f"differ: {differ_at}"


def _segments(shown: Mapping[str, Any]) -> Iterator[str]:
    """Of our systems, which all have the same segments, those of the first; then each one's memory."""
    ours = [system for system in shown["systems"] if "dynamic" in system["details"]]
    for system in ours[:1]:
        details = system["details"]
        static, dynamic = list(filter(_serves, details["segments"])), details["dynamic"]
        yield f"segments: {len(static)} static ({_launches(static)}), {len(dynamic)} dynamic ({_launches(dynamic)})"
        for entry in dynamic:
            yield f"  segment {entry['segment']} is dynamic ({_launches([entry])}): {', '.join(entry['reasons'])}"
        if details["islands"] is not None:
            yield from _islands(details["islands"])
    for system in ours:
        yield f"{system['name']}: memory of the plan: {_memory(system['details'])}"


def _serves(entry: Mapping[str, Any]) -> bool:
    """Not where several segments as one may have no graph: they follow, each by itself."""
    return entry["segment"] == entry["last_segment"] or entry["state"] not in ("REFUSED", "QUARANTINED")


def _launches(segments: Any) -> str:
    count = sum(entry["launches"] for entry in segments)
    return f"{count} launch{'' if count == 1 else 'es'}"


def _islands(islands: Mapping[str, Any]) -> Iterator[str]:
    """Of each call that no graph held, on average."""
    calls = max(1, islands["runs"] // islands["islands"])
    took = f"{1000 * islands['run_seconds'] / calls:.3f} ms"
    who = " and ".join(f"{count} on {provider}" for provider, count in islands["providers"].items())
    yield f"islands: {who}, {took} of a call; {_copies(islands, calls)}"
    for why, count in islands["on_host"].items():
        yield f"  {count} on the host: {why}"


def _copies(islands: Mapping[str, Any], calls: int) -> str:
    if not islands["bytes_to_host"] and not islands["bytes_to_device"]:
        return "nothing is copied for them"
    down, up = (console.size(islands[f"bytes_to_{end}"] // calls) for end in ("host", "device"))
    return f"copies of {down} to the host and {up} to the device take {1000 * islands['copy_seconds'] / calls:.3f} ms"


def _memory(details: Mapping[str, Any]) -> str:
    names = ("lasting", "arena", "graphs", "staging")
    held = ", ".join(f"{name} {console.size(details['memory'][name])}" for name in names if name in details["memory"])
    taken = details.get("device_memory")
    return held if taken is None else f"{held}; of the device {console.size(taken['taken'])} taken"
