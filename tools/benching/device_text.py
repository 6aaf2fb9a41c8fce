"""How is a measurement on a GPU read? Every time stands beside its multiple of the floor of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from hjgc.tools import console
from hjgc.tools.benching.text import (
    POINTS,
    number,
    plan_line,
    remarks,
    replayed,
    same_tokens,
    startup_table,
    versions,
)

LEFT = ("system", "tokens")
Row = Mapping[str, Any]


def text(shown: dict[str, Any]) -> Iterator[str]:
    machine = shown["machine"]
    yield plan_line(shown["plan"])
    yield from _device_lines(machine.get("cuda") or {})
    yield f"{machine['processor']}, {machine['system']}, Python {machine['python']}, {versions(shown)}, {shown['date']}"
    yield from _limits(shown)
    yield ""
    yield "milliseconds (x the floor); TTFT: from the prompt's ids on the host to the first token's id on the host"
    yield _prompts(shown)
    if shown["decode"]:
        yield ""
        yield "milliseconds (x the floor) from token to token on the host; read: the floor's share of the time"
        yield _decode(shown)
    yield from _cold(shown)
    yield from _capturing(shown["capturing"])
    yield from _launches(shown["launches"])
    yield ""
    yield _startup(shown)
    yield from _unavailable(shown)
    yield from _memory(shown)
    yield from remarks(shown)


def _device_lines(cuda: Row) -> Iterator[str]:
    for device in cuda.get("devices", ()):
        yield f"{device['name']} ({device['target']}), {console.size(device['bytes'])}, driver {cuda['driver']}"


def _limits(shown: Row) -> Iterator[str]:
    limits, step = shown["limits"], shown["step"]
    matrix = "" if limits["matrix"] is None else f", bf16 products {limits['matrix'] / 1e12:.0f} TFLOP/s"
    rates = (f"{name} {limits[name] / 1e9:.0f} GB/s" for name in ("read", "copy"))
    yield f"limits, measured first: {', '.join(rates)}{matrix}, host to device {limits['link'] / 1e9:.1f} GB/s"
    yield from (f"note: {note}" for note in limits["notes"])
    floor = 1000 * step["weight_bytes"] / limits["read"]
    per_token = console.size(step["kv_per_token"])
    yield f"a step reads {step['weight_bytes'] / 1e9:.3f} GB of weights: {floor:.3f} ms; {per_token} a cached token"


def _prompts(shown: Row) -> str:
    columns = ("prompt", "floor", "system", *POINTS, "p99/p50", "first", "replayed", "tokens")
    rows = [
        (
            row["length"],
            number(row["floor_ms"]),
            row["system"],
            *_beside(row["ttft_ms"], row["of_floor"]),
            _plain(row["tail"]),
            _times(row["cold_ttft_ms"], row["cold_ttft_ms"] / row["floor_ms"]),
            replayed(row),
            same_tokens(row),
        )
        for row in shown["rows"]
    ]
    return _table(columns, rows)


def _decode(shown: Row) -> str:
    columns = ("context", "floor", "system", *POINTS, "p99/p50", "read", "replayed", "tokens")
    rows = [
        (
            row["context"],
            number(row["floor_ms"]),
            row["system"],
            *_beside(row["token_ms"], row["of_floor"]),
            _plain(row["tail"]),
            "" if row["of_floor"] is None else f"{100 / row['of_floor']['p50']:.1f} %",
            replayed(row),
            same_tokens(row),
        )
        for row in shown["decode"]
    ]
    return _table(columns, rows)


def _cold(shown: Row) -> Iterator[str]:
    if not shown["cold"]:
        return
    warm = {(row["system"], row["length"]): row for row in shown["rows"]}
    columns = ("first request of a process", "system", "TTFT", "x warm p50")
    rows: list[tuple[object, ...]] = []
    for row in shown["cold"]:
        beside = warm.get((row["system"], row["length"]))
        shares = ("", "") if beside is None else _shares(row["ttft_ms"], beside)
        rows.append((f"{row['length']} tokens", row["system"], f"{number(row['ttft_ms'])}{shares[0]}", shares[1]))
    yield ""
    yield _table(columns, rows)


def _shares(milliseconds: float, warm: Row) -> tuple[str, str]:
    return f" ({milliseconds / warm['floor_ms']:.2f})", f"{milliseconds / warm['ttft_ms']['p50']:.2f}"


def _capturing(capturing: Row | None) -> Iterator[str]:
    if capturing is None:
        return
    yield ""
    yield f"{capturing['system']} while every graph is built and checked behind the requests ({_background(capturing)})"
    columns = ("figure", "replayed", "p50", "p99", "max", "plain", "p50 ", "p99 ", "idle", "p50  ", "p99  ", "max  ")
    names = ("replayed", "plain", "idle")
    rows = [(f"TTFT {row['length']}", *_three(row[f"{name}_ms"] for name in names)) for row in capturing["rows"]]
    rows.append(("token", *_three(capturing["token_ms"][name] for name in names)))
    yield console.table(columns, rows, right=columns[1:])
    shares = capturing["p99_of_idle"]
    yield (
        f"p99 of what was replayed meanwhile, as a multiple of the idle p99: TTFT {_plain(shares['ttft']) or '-'} "
        f"(each over the idle median of its length), token {_plain(shares['token']) or '-'}"
    )
    states = ", ".join(f"{count} {state}" for state, count in capturing["states"][-1].items())
    yield f"{capturing['system']}: segments afterwards: {states}"
    if not capturing["settled"]:
        yield f"note: {capturing['system']}: not every graph was ready when watching ended"


def _three(summaries: Iterator[Row | None]) -> list[str]:
    """Count and points of what was replayed, what ran plainly, and what ran with an idle worker."""
    cells: list[str] = []
    for summary, points in zip(summaries, (("p50", "p99", "max"), ("p50", "p99"), ("p50", "p99", "max")), strict=True):
        found = ("",) * (1 + len(points)) if summary is None else _counted(summary, points)
        cells += found
    return cells


def _counted(summary: Row, points: Sequence[str]) -> tuple[str, ...]:
    return str(summary["count"]), *(number(summary[point]) for point in points)


def _launches(launches: Sequence[Row] | None) -> Iterator[str]:
    """A table for each phase, and the median error over all its launches."""
    for phase in dict.fromkeys(row["phase"] for row in launches or ()):
        rows = [row for row in launches or () if row["phase"] == phase]
        yield ""
        yield f"{phase}: microseconds of a launch, {rows[0]['rows']} rows after {rows[0]['start']}"
        columns = ("kind", "op", "launches", "measured", "predicted", "error")
        cells = [(row["kind"], row["op"], str(len(row["launches"])), *_predicted(row)) for row in rows]
        yield console.table(columns, cells, right=columns[2:])
        errors = [abs(error) for row in rows for error in [_error(row)] * len(row["launches"]) if error is not None]
        if errors:
            yield f"median error of the predicted times of {len(errors)} launches: {median(errors):.1%}"


def _predicted(row: Row) -> tuple[str, str, str]:
    error, measured = _error(row), f"{row['measured_us']:.2f}"
    return (measured, "", "") if error is None else (measured, f"{row['predicted_us']:.2f}", f"{error:+.0%}")


def _error(row: Row) -> float | None:
    return None if row["predicted_us"] is None else row["predicted_us"] / row["measured_us"] - 1


def _background(capturing: Row) -> str:
    workers = capturing["worker"]
    builds = sum(worker["builds"] for worker in workers)
    spent = sum(worker["build_seconds"] + worker["check_seconds"] for worker in workers)
    runs, wall = capturing["runs"], sum(capturing["seconds"])
    held = console.size(max(capturing["graph_bytes"]))
    processes = "1 fresh process" if runs == 1 else f"{runs} fresh processes"
    return f"{processes}, {builds} graphs of {held} each time, {spent:.2f} s of work in {wall:.2f} s"


def _startup(shown: Row) -> str:
    rows = [(system["name"], system["startup_ms"]) for system in shown["systems"]]
    rows += [(f"{row['system']}, {row['length']} tokens", row["startup_ms"]) for row in shown["cold"]]
    return startup_table(rows)


def _unavailable(shown: Row) -> Iterator[str]:
    reasons = [system["unavailable"] for system in shown["systems"] if system["unavailable"] is not None]
    yield from (f"note: not measured: {reason}" for reason in [*reasons, *shown["problems"]])
    if shown["interrupted"]:
        yield "note: interrupted; what was not reached is missing here"


def _memory(shown: Row) -> Iterator[str]:
    for system in shown["systems"]:
        memory = system["details"].get("device_memory")
        if memory is not None:
            sizes = {name: console.size(max(0, count)) for name, count in memory.items()}
            yield (
                f"{system['name']}: takes {sizes['taken']} of the device, {sizes['beyond']} beyond weights and cache "
                f"({sizes['weights_and_cache']}){_parts(system['details'].get('memory', {}))}"
            )


def _parts(memory: Row) -> str:
    """What the session itself says it holds beyond them."""
    said = [f"{name} {console.size(memory[name])}" for name in ("arena", "graphs") if name in memory]
    return f": {', '.join(said)}" if said else ""


def _beside(summary: Row | None, shares: Row | None) -> Iterator[str]:
    for point in POINTS:
        yield "" if summary is None or shares is None else _times(summary[point], shares[point])


def _times(milliseconds: float, share: float) -> str:
    return f"{milliseconds:.3f} ({share:.2f})"


def _plain(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return console.table(columns, rows, right=[name for name in columns if name not in LEFT])
