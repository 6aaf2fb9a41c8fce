"""How does a measurement look: first tokens over prompt lengths, further tokens over contexts, beside their floors?"""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hjgc.plan_format.errors import InputError

WIDTH, HEIGHT, DOTS = 11.0, 4.5, 150
Row = Mapping[str, Any]


def check_library() -> None:
    """Raises InputError where pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        problem = "expected the package matplotlib, found it not installed"
        raise InputError("--plot", problem, next_step="pip install 'hjgc[plot]'")


def png(shown: Mapping[str, Any]) -> bytes:
    """Two pictures side by side: a line for each system's median, a band up to its p99, and the floor."""
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    prompts, tokens = figure.subplots(1, 2)
    _draw(prompts, shown["rows"], "length", "ttft_ms")
    prompts.set(xlabel="prompt, tokens", ylabel="time to first token, ms")
    decode = shown.get("decode") or shown["rows"]
    place = "context" if shown.get("decode") else "length"
    _draw(tokens, decode, place, "token_ms")
    tokens.set(xlabel="tokens before" if place == "context" else "prompt, tokens", ylabel="each further token, ms")
    figure.suptitle(f"{shown['plan']['model']}, {shown['plan']['compute_dtype']}, {shown['date']}")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, rows: Sequence[Row], place: str, figure: str) -> None:
    measured = [row for row in rows if row[figure] is not None]
    for name in dict.fromkeys(row["system"] for row in measured):
        own = sorted((row for row in measured if row["system"] == name), key=lambda row: row[place])
        at = [row[place] for row in own]
        middle, slow = ([row[figure][point] for row in own] for point in ("p50", "p99"))
        (line,) = axes.plot(at, middle, marker="o", markersize=3, label=name)
        axes.fill_between(at, middle, slow, color=line.get_color(), alpha=0.2, linewidth=0)
    floors = dict(sorted((row[place], row["floor_ms"]) for row in rows if "floor_ms" in row))
    if floors:
        axes.plot(list(floors), list(floors.values()), color="black", linestyle="--", label="floor")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if measured:
        axes.legend(frameon=False, fontsize="small")
