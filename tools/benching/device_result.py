"""What does a measurement on a GPU come to, beside the floors of the same run?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hjgc.plan_format.structs import Plan
from hjgc.tools.benching.alone import Cell, Found
from hjgc.tools.benching.floors import Limits, cached, decode_floor, prompt_floor, work
from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.times import first_difference, milliseconds, percentile, summary, tail


def result(plan: Plan, limits: Limits, settings: Settings, found: Mapping[str, Found]) -> dict[str, Any]:
    """The part of the JSON that the systems and the limits make."""
    return {
        "limits": dataclasses.asdict(limits) | {"notes": list(limits.notes)},
        "step": {"weight_bytes": work(plan, "decode", 1).weight_bytes, "kv_per_token": plan.ledger.kv_per_token},
        "systems": [_system(name, entry, settings) for name, entry in found.items()],
        "rows": _rows(plan, limits, settings.lengths, found),
        "decode": _decode_rows(plan, limits, settings, found),
    }


def _system(name: str, found: Found, settings: Settings) -> dict[str, Any]:
    return {
        "name": name,
        "unavailable": found.unavailable,
        "versions": found.versions,
        "startup_ms": found.startup_ms,
        "first_request_length": settings.lengths[0],
        "graphs_settled": found.settled,
        "details": found.details,
    }


def _rows(plan: Plan, limits: Limits, lengths: Sequence[int], found: Mapping[str, Found]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for length in lengths:
        floor = prompt_floor(plan, limits, length)
        cells = {name: entry.prompts[length] for name, entry in found.items() if length in entry.prompts}
        rows += [_row(name, length, cell, floor, _reference(cells)) for name, cell in cells.items()]
    return rows


def _row(name: str, length: int, cell: Cell, floor: float, reference: Sequence[int]) -> dict[str, Any]:
    points = summary(cell.series.firsts)
    return {
        "system": name,
        "length": length,
        "floor_ms": milliseconds(floor),
        "ttft_ms": points,
        "of_floor": of_floor(points, floor),
        "tail": tail(points),
        "token_ms": summary(cell.series.furthers),
        "cold_ttft_ms": milliseconds(cell.first.first),
        "cold_token_ms": milliseconds(percentile(cell.first.further, 0.5)) if cell.first.further else None,
        **_common(cell, reference),
    }


def _decode_rows(plan: Plan, limits: Limits, settings: Settings, found: Mapping[str, Found]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for context in settings.contexts:
        floor = decode_floor(plan, limits, cached(context, settings.decode))
        cells = {name: entry.contexts[context] for name, entry in found.items() if context in entry.contexts}
        rows += [_decode_row(name, context, cell, floor, _reference(cells)) for name, cell in cells.items()]
    return rows


def _decode_row(name: str, context: int, cell: Cell, floor: float, reference: Sequence[int]) -> dict[str, Any]:
    points = summary(cell.series.furthers)
    return {
        "system": name,
        "context": context,
        "floor_ms": milliseconds(floor),
        "token_ms": points,
        "of_floor": of_floor(points, floor),
        "tail": tail(points),
        "prompt_ms": summary(cell.series.firsts),
        **_common(cell, reference),
    }


def _common(cell: Cell, reference: Sequence[int]) -> dict[str, Any]:
    answers = [cell.first.tokens, *cell.series.answers]
    places = [place for tokens in answers if (place := first_difference(tokens, reference)) is not None]
    return {
        "replayed": cell.series.replayed,
        "ran": cell.series.ran,
        "tokens": list(cell.first.tokens),
        "tokens_differ_at": min(places, default=None),
    }


def _reference(cells: Mapping[str, Cell]) -> Sequence[int]:
    """The tokens of the first system that was measured there."""
    return next(iter(cells.values())).first.tokens if cells else ()


def of_floor(points: Mapping[str, float] | None, floor: float) -> dict[str, float] | None:
    """Each time as a multiple of the floor."""
    if points is None:
        return None
    return {name: round(points[name] / (1000 * floor), 4) for name in ("p50", "p90", "p99", "max")}
