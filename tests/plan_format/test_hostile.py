"""What does a reader do with a plan that somebody broke on purpose?

Always a PlanError that names the place, or, where the change happens to be legal, a plan that loads, verifies again and
differs only in what may differ: never another exception, a hang, a file outside the weights root, or much memory.
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import sys
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest

from hjgc.plan_format import PlanError, PlanFile, encode, load
from hjgc.plan_format.container import KINDS
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.text import render
from hjgc.plan_format.verify import verify
from tests.plan_format.files import take_apart, with_section
from tests.plan_format.mutations import FILE_MUTATIONS, PLAN_MUTATIONS, SPELLING_MUTATIONS, parts_of

CASES = 2000
MEMORY = 64 << 20
PATIENCE = 20
"""Seconds after which a case counts as a hang."""

FEW = 80
"""Changes of the plan itself that happen to be legal, of CASES."""

# What a plan may say otherwise and still be a plan. No host memory is touched that was not meant to be: names; numbers
# that only change the answer; another place in the arena where nothing else lives; other bytes of the same files.
BENIGN = re.compile(
    r"(phases\.\*\.(launches|buffers)|weights|states|constants|templates)\.\*\.name"
    r"|phases\.\*\.numerics"
    r"|phases\.\*\.launches\.\*\.attributes\.\w+"
    r"|phases\.\*\.launches\.\*\.operands\.\*\.(role|space|index|access)"
    r"|phases\.\*\.buffers\.\*\.(offset|bytes|first|last)"
    r"|phases\.\*\.sizes\.\*\.(low|high)"
    r"|phases\.\*\.edges.*"
    r"|weights\.\*\.sources\.\*\.(offset|file|slice_start|slice_stop)"
    r"|(producer|model)\..*"
    r"|features\.(\*|count)"
    # What is handed to device code, and how it was built, is part of that code: docs/security.md.
    r"|phases\.\*\.launches\.\*\.kernels\.sm_\*\.(grid|arguments)\..*"
    r"|variants\.\*\.(axes\..*|pdl|parameters.*)"
    r"|variants\.\*\.built\.(entry|threads|shared_bytes|registers|code\.(offset|length|sha\*))"
    r"|variants\.\*\.built"  # a plan may have variants that are not built
    # Text is for people, and checked when it is read.
    r"|templates\.\*\.(only|files\..*)"
    # What a function is called with, by name and in words; islands are judged again when they are opened.
    r"|phases\.\*\.(values|arguments|results)\..*"
    r"|phases\.\*\.(inputs|outputs)\.\*"
    r"|files\.\*\.sha\*"
    r"|phases\.\*\.schedules\.\*\.segments\.\*\.reasons\..*"  # for people
    r"|islands\..*"
)


def broken(seed: int, source: Path) -> tuple[str, bytes]:
    """The file of one case, and what was done to it. Even seeds leave digests wrong, odd ones make them right."""
    r = random.Random(seed)
    raw, parts = source.read_bytes(), take_apart(source)
    if seed % 2 == 0:
        mutate = r.choice(FILE_MUTATIONS)
        return mutate.__name__, mutate(r, raw, parts)
    if r.random() < 0.25:
        section = r.choice([part for part in parts if part.kind in (b"plan", b"debug")])
        spell = r.choice(SPELLING_MUTATIONS)
        return f"{spell.__name__} in {section.kind.decode()}", with_section(parts, section.kind, spell(r, section.data))
    tree = msgpack.unpackb(parts[0].data)
    names: list[str] = []
    for _ in range(r.choice((1, 1, 1, 2))):
        change = r.choice(PLAN_MUTATIONS)
        if change(r, tree):
            names.append(change.__name__)
    return "+".join(names), with_section(parts, b"plan", msgpack.Packer().pack(tree))


def read_all(path: Path, root: Path) -> PlanFile:
    """All that loading may do with a plan before a device sees it."""
    with load(path) as file:
        file.debug()
        for kind in KINDS:
            file.section(kind)
        render(file.plan)
        for weight_file in file.plan.files:
            check_weight_file(weight_file, root, path)
        return file


OPENED: list[str] = []
_watching = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str | bytes):
        OPENED.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_note)  # for good: hooks cannot be removed, so this one sleeps between cases


@contextmanager
def watching() -> Generator[list[str]]:
    """The real paths of the files that are opened meanwhile."""
    global _watching
    OPENED.clear()
    _watching = True
    try:
        yield OPENED
    finally:
        _watching = False


@contextmanager
def impatient(case: str) -> Generator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError(f"{case}: still not done after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def measured() -> Generator[list[int]]:
    """Afterwards, the most bytes that Python held at one time."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


def set_traps(folder: Path) -> None:
    """What a name may not lead to: a file beside the root, and ways out of it."""
    root = folder / "root"
    root.mkdir()
    secret = folder / "secret.bin"
    secret.write_bytes(b"secret")
    (root / "link.bin").symlink_to(secret)
    (root / "linked").symlink_to(folder)
    os.mkfifo(root / "pipe")


def changed_places(before: bytes, after: bytes) -> set[str]:
    """The fields in which two plans differ, entries not numbered; a list of another length is named itself."""
    one, two = _leaves(before), _leaves(after)
    return {re.sub(r"\d+", "*", place) for place in one.keys() | two.keys() if one.get(place) != two.get(place)}


def _leaves(data: bytes) -> dict[str, str]:
    leaves: dict[str, str] = {}
    for path, value in parts_of(msgpack.unpackb(data)):
        place = ".".join(map(str, path))
        if isinstance(value, list):
            leaves[f"{place}.count"] = str(len(value))
        elif not isinstance(value, dict):
            leaves[place] = repr(value)
    return leaves


@dataclass
class Bench:
    """Where cases are tried, and what became of them."""

    root: Path
    sources: tuple[Path, ...]
    refused: int = 0
    accepted: list[str] = field(default_factory=list)

    def try_case(self, seed: int) -> None:
        source = self.sources[seed // 2 % len(self.sources)]
        name, raw = broken(seed, source)
        case = f"case {seed} ({name} in the plan of {source.parent.name})"
        path = self.root / "plan.hjg"
        path.write_bytes(raw)
        with impatient(case), watching() as opened, measured() as peak:
            outcome = outcome_of(path, self.root)
        assert peak[0] < MEMORY, case
        assert [place for place in opened if not Path(place).is_relative_to(self.root)] == [], case
        if isinstance(outcome, PlanFile):
            self.judge_accepted(case, source, outcome)
        else:
            self.judge_refused(case, outcome)

    def judge_refused(self, case: str, error: Exception) -> None:
        assert isinstance(error, PlanError), f"{case}: {error!r}"
        assert error.field or error.place != str(self.root / "plan.hjg"), f"{case}: no place in {error}"
        assert len(str(error)) < 3000, f"{case}: {len(str(error))} characters"
        self.refused += 1

    def judge_accepted(self, case: str, source: Path, file: PlanFile) -> None:
        """It verifies again, and what differs may."""
        verify(file.plan, file.section_lengths(), file.path)
        places = changed_places(take_apart(source)[0].data, encode(file.plan))
        assert sorted(place for place in places if not BENIGN.fullmatch(place)) == [], case
        if places:
            self.accepted.append(f"{case}: {sorted(places)}")


def resident_bytes() -> int:
    """The most that the process ever had in memory: what extensions allocate counts too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def outcome_of(path: Path, root: Path) -> PlanFile | Exception:
    try:
        return read_all(path, root)
    except Exception as error:
        return error


@pytest.mark.skipif(not hasattr(signal, "SIGALRM") or not hasattr(os, "mkfifo"), reason="needs alarms and pipes")
def test_a_broken_plan_is_refused_with_its_place_and_touches_nothing(
    compiled: Path, device: Path, tmp_path: Path
) -> None:
    set_traps(tmp_path)
    bench = Bench(tmp_path / "root", (compiled, device))
    for source in bench.sources:
        for file in load(source).plan.files:
            (bench.root / file.name).write_bytes((source.parent / file.name).read_bytes())
        read_all(source, bench.root)
    resident = resident_bytes()
    for seed in range(CASES):
        bench.try_case(seed)
    assert resident_bytes() - resident < MEMORY
    assert bench.refused > 0.9 * CASES
    assert len(bench.accepted) <= FEW, bench.accepted
