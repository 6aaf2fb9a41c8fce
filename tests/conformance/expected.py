"""Which cases are known not to be native, and may that list change?

`not_native.txt` has a line `island NAME` or `failed NAME` for each. It may only shrink: HJGC_ACCEPT=1 takes over what
became better, HJGC_ACCEPT=grow what became worse too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.conformance.running import Outcome, Result

PATH = Path(__file__).with_name("not_native.txt")
ORDER = tuple(Result)
MACHINE_LACKS = "Failed to construct locale"
"""What ONNX Runtime says of text operators on a machine without the locale en_US.UTF-8: nothing about us."""


def versions() -> str:
    """What the list is true of: other versions have other cases, and other operators for islands."""
    return f"# onnx {version('onnx')}, onnxruntime {version('onnxruntime')}"


def other_versions() -> str:
    """Why the list cannot be compared here, unless it is being made anew."""
    header = read().header
    if header == versions() or os.environ.get("HJGC_ACCEPT") == "grow":
        return ""
    return f"the list is of {header[2:]}, here are {versions()[2:]}"


@dataclass(frozen=True)
class Known:
    """The list, as it is stored."""

    header: str
    results: Mapping[str, Result]

    def result(self, name: str) -> Result:
        return self.results.get(name, Result.NATIVE)


def read() -> Known:
    header, *lines = PATH.read_text(encoding="utf-8").splitlines()
    results = {name: Result(result) for result, name in (line.split(" ") for line in lines)}
    return Known(header, results)


def complaints(known: Known, outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """One line for each case that is better or worse than its line says."""
    for name, outcome in outcomes.items():
        before, now = known.result(name), _judged(outcome)
        if _is_worse(now, before):
            yield f"{name} was {before}, is {now}: {outcome.reason or 'see hjgc explain'}"
        elif now != before:
            yield f"{name} was {before}, is {now}: HJGC_ACCEPT=1 renews {PATH.name}"


def renewed(known: Known, outcomes: Mapping[str, Outcome], *, grow: bool) -> dict[str, Result]:
    """The list with these outcomes; without `grow`, only where they are better."""
    results = dict(known.results)
    for name, outcome in outcomes.items():
        if grow or not _is_worse(_judged(outcome), known.result(name)):
            results[name] = _judged(outcome)
    return results


def accept(outcomes: Mapping[str, Outcome]) -> None:
    """Renew the list as far as HJGC_ACCEPT allows."""
    accepted = os.environ.get("HJGC_ACCEPT")
    if accepted:
        write(renewed(read(), outcomes, grow=accepted == "grow"))


def accept_names(names: Iterable[str]) -> None:
    """Drop the lines of cases that are no more, if HJGC_ACCEPT allows."""
    if os.environ.get("HJGC_ACCEPT"):
        known = read()
        write({name: known.results[name] for name in known.results.keys() & set(names)})


def write(results: Mapping[str, Result]) -> None:
    lines = sorted(f"{result} {name}" for name, result in results.items() if result != Result.NATIVE)
    PATH.write_text("\n".join((versions(), *lines)) + "\n", encoding="utf-8")


def stale(known: Known, names: Iterable[str]) -> list[str]:
    """Lines of cases that are no more."""
    return sorted(known.results.keys() - set(names))


def _judged(outcome: Outcome) -> Result:
    """An island, where only the machine is in its way."""
    return Result.ISLAND if MACHINE_LACKS in outcome.reason else outcome.result


def _is_worse(one: Result, other: Result) -> bool:
    return ORDER.index(one) > ORDER.index(other)
