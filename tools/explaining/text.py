"""How does a person read an explanation, in 100 columns?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from hjgc.tools.console import count, size
from hjgc.tools.explaining.calls import call_lines
from hjgc.tools.explaining.chains import KIND_WORDS
from hjgc.tools.wrapping import wrapped

MOST_CAUSES = 6
"""Launches of one segment that are explained in full."""
HOW = {"plain": "launch by launch", "parts": "in parts", "not_built": "code not built ahead"}


def text(shown: dict[str, Any]) -> Iterator[str]:
    """The explanation of a whole plan."""
    yield from head(shown)
    for phase in shown["phases"]:
        for schedule in phase["schedules"]:
            yield f"{phase['name']}/{schedule['name']}: {_share(schedule)}"
    if shown["call"] is not None:
        for line in call_lines(shown["call"], _moved(shown["call"])):
            yield from wrapped(line)
    for entry, schedules in _folded(shown["dynamic"]):
        yield ""
        yield from _dynamic(entry, schedules)
    if not shown["dynamic"]:
        yield from ("", "nothing is dynamic: every schedule replays as graphs alone")
    if shown["call"] is not None:
        return
    yield from ("", "prompt lengths without a graph or without code built ahead")
    yield from _lengths(shown["lengths"])
    if not shown["missing"]:
        yield from ("", "rewrites that almost fired")
        yield from _notes(shown["almost_fired"])


def head(shown: dict[str, Any]) -> Iterator[str]:
    yield from wrapped(
        f"{shown['file']['path']}: {shown['model']} for {', '.join(shown['targets'])}, hjgc {shown['hjgc']}"
    )
    predicted = shown["prediction"]
    if predicted["chip"]:
        yield f"predicted times are for {predicted['target']} on an {predicted['chip']}"
    else:
        yield from wrapped(f"times are not predicted: {predicted['why_not']}")
    for missing in shown["missing"]:
        yield from wrapped(f"missing, since the debug section was stripped: {missing}")


def _share(schedule: dict[str, Any]) -> str:
    dynamic, launches = schedule["dynamic_launches"], schedule["launches"]
    if not dynamic:
        graphs = f"{schedule['segments']} graphs" if schedule["segments"] > 1 else "one graph"
        return f"static, {launches} launches, {graphs} a call"
    return f"{schedule['segments']} segments, {dynamic} of {launches} launches dynamic"


def _folded(entries: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[str]]]:
    """Segments of one phase that are the same in several schedules, once, with the names of these."""
    folded: dict[tuple[str, tuple[int, ...]], tuple[dict[str, Any], list[str]]] = {}
    for entry in entries:
        key = (entry["phase"], tuple(entry["launches"]))
        folded.setdefault(key, (entry, []))[1].append(entry["schedule"])
    return list(folded.values())


def _dynamic(entry: dict[str, Any], schedules: Sequence[str]) -> Iterator[str]:
    yield from wrapped(f"{entry['phase']}: {_numbers(entry['launches'])} dynamic in {', '.join(schedules)}")
    causes = entry["causes"]
    for cause in causes[:MOST_CAUSES]:
        yield from cause_text(cause)
    if len(causes) > MOST_CAUSES:
        yield f"  and {len(causes) - MOST_CAUSES} more launches: --json has why for each"
    yield from costs(entry["cost"], {cause["op"] for cause in causes})


def costs(cost: dict[str, Any], ops: set[str]) -> Iterator[str]:
    """Of launches of these ops. Who serves the plan decides what is copied for an island."""
    yield from wrapped(cost_text(cost), first="  costs   ", rest="          ")
    if "island" in ops and (cost["to_host"] or cost["to_device"]):
        words = "with onnxruntime-gpu nothing is copied where its CUDA provider takes the island (docs/functions.md)"
        yield from wrapped(words, first="          ", rest="          ")


def cause_text(cause: dict[str, Any]) -> Iterator[str]:
    yield from wrapped(f"{cause['code']}, {cause['sentence']}", first="  why     ", rest="          ")
    for place, link in enumerate(cause["chain"]):
        words = f"{KIND_WORDS[link['kind']]} {link['name']}"
        yield from wrapped(words, first="          " + ("<- " if place else ""), rest="             ")
    yield from wrapped(cause["change"], first="  change  ", rest="          ")


def _numbers(launches: Sequence[int]) -> str:
    if len(launches) == 1:
        return f"launch {launches[0]}"
    return f"launches {launches[0]} to {launches[-1]} ({len(launches)})"


def cost_text(cost: dict[str, Any]) -> str:
    """Of a call, and of each of its rows where it has several."""
    if cost["function"]:
        return f"{_amounts(cost)} for the largest call there may be"
    if cost["rows"] == 1:
        return f"{_amounts(cost)} for a token after {cost['start']} cached"
    return f"{_amounts(cost)} for {cost['rows']} rows of a prompt; for each of them {_amounts(cost['per_token'])}"


def _amounts(cost: dict[str, Any]) -> str:
    words: list[str] = []
    if cost["bytes"] or cost["flops"]:
        words.append(f"{_moved(cost)} on the device")
    if cost["predicted_us"] is not None:
        words.append(f"{cost['predicted_us']:.{1 if cost['predicted_us'] >= 1 else 3}f} us")
    if cost["to_host"] or cost["to_device"]:
        to_host, to_device = size(round(cost["to_host"])), size(round(cost["to_device"]))
        words.append(f"{to_host} copied to the host, {to_device} back")
    return ", ".join(words) or "nothing"


def _moved(cost: dict[str, Any]) -> str:
    return f"{size(round(cost['bytes']))} and {count(round(cost['flops']))} operations"


def _lengths(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not entries:
        yield "  none"
    for entry in entries:
        span = f"{entry['low']}" if entry["low"] == entry["high"] else f"{entry['low']} to {entry['high']}"
        yield from wrapped(f"{span} tokens, {HOW[entry['how']]}: {entry['why']}", first="  ", rest="    ")
        yield from wrapped(f"to change it: {entry['change']}", first="    ", rest="    ")


def _notes(notes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What stopped each rule, once, with the first node and how many more there are."""
    if not notes:
        yield "  none"
    times = Counter((note["rule"], note["why"]) for note in notes)
    for rule, why in times:
        nodes = [note["node"] for note in notes if (note["rule"], note["why"]) == (rule, why)]
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        yield from wrapped(f"{rule} at {nodes[0]}{more}: {why}", first="  ", rest="    ")
