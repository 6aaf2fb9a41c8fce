"""What do a session's report and a bench's result add to the page of a plan?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from operator import index
from pathlib import Path
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Plan
from hjgc.runtime.runner import spell_segments
from hjgc.tools.prediction import prediction, prompt_seconds, row_range, token_seconds

SHOWN = ("phase", "schedule", "segment", "key", "state", "hits", "plain_runs", "why")


def read_json(path: Path, option: str, wanted: str) -> dict[str, Any]:
    """Raises InputError for what is no JSON object with the key `wanted`."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"expected a file to read, found none: {error.strerror}", field=option) from None
    except ValueError as error:
        raise InputError(path, f"expected JSON, found {error}", field=option) from None
    if not isinstance(found, dict) or wanted not in found:
        problem = f"expected a JSON object with the key {wanted!r}, found none"
        raise InputError(path, problem, field=option)
    return found


def read_bench(path: Path) -> dict[str, Any]:
    """Raises InputError for what is no result of a bench of a decoder."""
    bench = read_json(path, "--bench", "rows")
    if str(bench.get("schema")).startswith("hjgc-bench-calls"):
        problem = "expected what was measured of a decoder, found calls of a function"
        raise InputError(path, problem, field="--bench", next_step="leave --bench out")
    return bench


def measured(plan: Plan, path: Path) -> list[dict[str, Any]]:
    """Each median of a system of ours beside its prediction, in milliseconds: prompts, then tokens. Raises InputError
    for what is no result of a bench."""
    bench = read_bench(path)
    prompt = next((phase for phase in plan.phases if phase.name == "prefill"), None)
    most = 0 if prompt is None else row_range(prompt)[1]
    steps = any(phase.name == "decode" for phase in plan.phases)
    try:
        return [*_prompts(plan, bench["rows"], most), *_tokens(plan, bench.get("decode", ()), steps=steps)]
    except (KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(path, "expected the result of `hjgc bench`, found another", field="--bench") from None


def launch_times(plan: Plan, path: Path) -> list[dict[str, Any]]:
    """What each kind of launch took, where the bench timed them (`--launches`): its phase, the rows and cached tokens,
    the numbers of its launches, and microseconds. Raises InputError for what is no result of a bench."""
    rows = read_bench(path).get("launches") or ()
    try:
        return [_timed(plan, row) for row in rows]
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError):
        problem = "expected launches of this plan in the result of `hjgc bench --launches`, found others"
        raise InputError(path, problem, field="--bench") from None


def _timed(plan: Plan, row: Mapping[str, Any]) -> dict[str, Any]:
    """Raises TypeError, IndexError or KeyError for what is no time of launches of this plan."""
    phase = next((phase for phase in plan.phases if phase.name == row["phase"]), None)
    numbers, took = [index(number) for number in row["launches"]], row["measured_us"]
    if phase is None or not numbers or any(phase.launches[n].op != row["op"] for n in numbers) or min(numbers) < 0:
        raise KeyError(row["phase"])
    if not math.isfinite(took) or took <= 0:
        raise TypeError(took)
    place = {"phase": phase.name, "rows": index(row["rows"]), "start": index(row["start"])}
    return {**place, "kind": str(row["kind"]), "launches": numbers, "us": took}


def report(plan: Plan, path: Path) -> dict[str, Any]:
    """Of a session's report what is shown. Raises InputError for what is none, or one of another model."""
    found = read_json(path, "--report", "segments")
    if found.get("model", plan.model.name) != plan.model.name:
        problem = f"expected a report of {plan.model.name}, found one of {found['model']}"
        raise InputError(path, problem, field="--report", next_step="give the plan that was served")
    segments = found["segments"]
    try:
        static = [entry for entry in segments if entry["kind"] == "static"]
        return {"segments": [_shown(entry) for entry in static]}
    except (KeyError, TypeError):
        raise InputError(path, "expected what `session.report()` gives, found another", field="--report") from None


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    last = entry.get("last_segment", entry["segment"])
    return {name: entry[name] for name in SHOWN} | {"segment": spell_segments(entry["segment"], last)}


def _prompts(plan: Plan, rows: Any, most: int) -> Iterator[dict[str, Any]]:
    """`most`: the tokens of a prompt in one call, whose time can be predicted."""
    chip = prediction(plan).chip
    for row in rows:
        if row["system"].startswith("hjgc") and row["ttft_ms"]:
            fits = row["length"] <= most
            seconds = prompt_seconds(plan, chip, row["length"]) if chip is not None and fits else None
            yield _entry(f"{row['system']}: first token of {row['length']}", row["ttft_ms"], seconds)


def _tokens(plan: Plan, rows: Any, *, steps: bool) -> Iterator[dict[str, Any]]:
    chip = prediction(plan).chip
    for row in rows:
        if row["system"].startswith("hjgc") and row["token_ms"]:
            seconds = token_seconds(plan, chip, row["context"]) if chip is not None and steps else None
            yield _entry(f"{row['system']}: token at context {row['context']}", row["token_ms"], seconds)


def _entry(what: str, points: Mapping[str, float], seconds: float | None) -> dict[str, Any]:
    found = points["p50"]
    if not math.isfinite(found):  # raises TypeError for what is no number
        raise TypeError(found)
    return {"what": what, "measured": found, "predicted": None if seconds is None else seconds * 1e3}
