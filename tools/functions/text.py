"""How is read what a function gave beside ONNX Runtime?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from hjgc.tools import console
from hjgc.tools.functions.verifying import spell_sizes

COLUMNS = ("sizes", "output", "type", "shape", "difference", "tolerance", "differ")
RIGHT = ("difference", "tolerance", "differ")


def text(shown: Mapping[str, Any]) -> Iterator[str]:
    """What was compared, a line for each output of each call, the first difference, and remarks."""
    yield f"against {shown['against']} on ONNX Runtime, the plan on {shown['device']}"
    yield inputs_line(shown)
    yield _tolerances(shown)
    yield console.table(COLUMNS, [_row(run, one) for run in shown["calls"] for one in run["outputs"]], right=RIGHT)
    for run in shown["calls"]:
        yield from (_first(run, one) for one in run["outputs"] if not one["equal"])
    for note in shown["notes"]:
        yield f"note: {note}"


def inputs_line(shown: Mapping[str, Any]) -> str:
    """Whose inputs they are."""
    return f"inputs of {shown['feed']}" if shown["feed"] else f"inputs {shown['made_up']} (seed {shown['seed']})"


def _tolerances(shown: Mapping[str, Any]) -> str:
    what = "difference: the largest, as a part of the output's largest magnitude"
    if shown["tolerance"] is not None:
        limit = f"tolerance {shown['tolerance']:g}"
    elif shown["computed_in"]:
        limit = f"tolerance by type, as sums in another order round otherwise (computed in {shown['computed_in']})"
    else:
        limit = "tolerance by type"
    return f"{what}; {limit}; whole numbers, truth values and text must be equal"


def _row(run: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[object, ...]:
    sizes = spell_sizes(run["sizes"])
    if one["problem"]:
        return sizes, one["name"], one["dtype"], one["shape"] or "", "", "", "all"
    relative = math.inf if one["relative"] is None else one["relative"]
    rounded = (f"{relative:.1e}", f"{one['tolerance']:g}") if one["tolerance"] else ("", "")
    count = math.prod(one["shape"])
    return sizes, one["name"], one["dtype"], one["shape"], *rounded, f"{one['differ']} of {count}"


def _first(run: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    where = f"{one['name']}, with {spell_sizes(run['sizes'])}"
    if one["problem"]:
        return f"output {where}: {one['problem']}"
    first = one["first"]
    return f"output {where}: first at {first['index']}, expected {first['expected']}, found {first['found']}"
