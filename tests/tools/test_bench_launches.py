"""Are launches timed by kind, at the place that their costs are given for, and shown beside what was predicted?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hjgc.plan_format.errors import HjgcError
from hjgc.tools.benching import fresh
from hjgc.tools.benching.device_text import _launches
from hjgc.tools.benching.settings import Settings
from hjgc.tools.peers.launches import ROUNDS, kinds, time_launches
from hjgc.tools.prediction import representative
from tests.plans import small_plan
from tests.runtime.fake_device import FakeDevice
from tests.runtime.gpu_plan import gpu_plan

SETTINGS = Settings((3,), 1, 1, 1, 0, 50)


class TimedDevice(FakeDevice):
    """Each launch takes 2 us, one of an `attention` 5 us; the clock stands at the launches so far."""

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.now = 0.0
        self.marks: list[float] = []
        self.places: list[tuple[int, int]] = []

    def run(self, phase: str, launches: Sequence[int], tokens: Any, stop: Any = None, ahead: int | None = None) -> bool:
        del stop, ahead
        self.places.append((self._field("start"), self._field("length")))
        ops = [self.plan.phase(phase).launches[number].op for number in launches]
        self.now += sum(5 if op == "attention" else 2 for op in ops)
        if "sample" in ops:  # the step moves on
            self.write_parameters({"start": self._field("start") + tokens, "length": 1})
        return True

    def _field(self, name: str) -> int:
        offset = self._fields[name].offset
        return int(self._parameters[offset : offset + 4].view("<i4")[0])

    def mark(self) -> float:
        self.marks.append(self.now)
        return self.now

    def drop_marks(self, marks: Sequence[float]) -> None:
        for mark in marks:
            self.marks.remove(mark)

    def milliseconds(self, first: float, second: float) -> float:
        return (second - first) / 1e3


def test_every_device_launch_belongs_to_a_kind_and_those_of_all_layers_to_one() -> None:
    plan = small_plan(layers=3)
    for phase in plan.phases:
        found = kinds(phase)
        launches = [number for numbers in found.values() for number in numbers]
        assert len(set(launches)) == len(launches)
        assert {len(numbers) for (_, op), numbers in found.items() if op == "attention"} == {3}
        assert all(phase.launches[n].op == op for (_, op), numbers in found.items() for n in numbers)


def test_a_kind_is_timed_at_the_rows_and_after_the_tokens_that_costs_are_given_for() -> None:
    device = TimedDevice(small_plan(layers=3))
    rows = time_launches(device.plan, device)
    assert {(row["phase"], row["rows"], row["start"]) for row in rows} == {
        (phase.name, *representative(phase)) for phase in device.plan.phases
    }
    assert all(row["measured_us"] == pytest.approx(5 if row["op"] == "attention" else 2) for row in rows)
    assert set(device.places) == {(start, count) for count, start in map(representative, device.plan.phases)}
    assert len(device.places) == 2 * ROUNDS * len(rows) and not device.marks


def test_a_device_that_has_no_clock_is_named() -> None:
    device = FakeDevice(small_plan())
    with pytest.raises(HjgcError, match="expected a GPU to time launches on, found cpu"):
        time_launches(device.plan, device)


class Process:
    rows: list[dict[str, Any]]

    def __init__(self, *arguments: object) -> None:
        del arguments

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def launches(self) -> list[dict[str, Any]]:
        return self.rows


def test_predictions_stand_beside_and_the_error_counts_every_launch(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    plan = gpu_plan(tmp_path)
    numbers = list(range(len(plan.phase("decode").launches)))
    row = {"phase": "decode", "rows": 1, "start": 5, "op": plan.phase("decode").launches[0].op}
    Process.rows = [
        {**row, "kind": "first", "launches": numbers[:1], "measured_us": 3.2},
        {**row, "kind": "rest", "launches": numbers[1:], "measured_us": 1.6},
    ]
    monkeypatch.setattr(fresh, "PeerProcess", Process)
    told: list[str] = []
    found = fresh.launches("hjgc plain", {}, plan, SETTINGS, told.append)
    assert told == ["hjgc plain: its launches, by kind"]
    assert [entry["predicted_us"] for entry in found] == [pytest.approx(1.6, rel=0.01)] * 2
    lines = list(_launches(found))
    assert lines[1] == "decode: microseconds of a launch, 1 rows after 5"
    assert "-50%" in lines[2] and lines[3] == f"median error of the predicted times of {len(numbers)} launches: 0.0%"


def test_without_a_known_chip_the_times_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    row = {"phase": "decode", "rows": 1, "start": 5, "op": "embedding", "kind": "it", "launches": [0]}
    Process.rows = [{**row, "measured_us": 3.25}]
    monkeypatch.setattr(fresh, "PeerProcess", Process)
    found = fresh.launches("hjgc plain", {}, plan, SETTINGS, lambda line: None)
    assert found[0]["predicted_us"] is None
    lines = list(_launches(found))
    assert len(lines) == 3 and "3.25" in lines[2] and lines[2].count("%") == 0
    assert list(_launches(None)) == []
