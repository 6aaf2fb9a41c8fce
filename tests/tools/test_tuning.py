"""Does tuning keep what is clearly faster and right, and nothing else?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjgc import plan_format
from hjgc.compiler import compile_model
from hjgc.compiler.build_variants import VariantKey
from hjgc.plan_format import Plan
from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import call_for
from hjgc.tools.tuning import Place, Tuned, Tuner, places
from tests.compiler.exports import SMALL, copy_of
from tests.tools.command_line import CommandLine

DECODE = Place("decode", 1, (5,))
Cost = Callable[[str, Mapping[str, Any]], float]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = copy_of("gqa", tmp_path_factory.mktemp("tune"))
    return compile_model(model, model.with_name("plan.hjg"), **SMALL, targets=("sm_90",), portable=False).path


@pytest.fixture
def plan(path: Path) -> Plan:
    with plan_format.load(path) as file:
        return file.plan


class FakeCard:
    """A step takes what `cost` says of each of its launches; `wrong` variants leave other logits."""

    def __init__(self, cost: Cost, wrong: Cost = lambda name, axes: 0.0) -> None:
        self.cost, self.wrong, self.measured = cost, wrong, 0

    def measure(
        self, plan: Plan, added: Mapping[int, BuiltVariant], place: Place, repeats: int
    ) -> tuple[list[float], Any]:
        self.measured += 1
        calls = [call_for(launch.kernels["sm_90"], place.rows) for launch in plan.phase(place.phase).launches]
        variants = [plan.variants[call.variant] for call in calls if call is not None]
        named = [(plan.templates[v.template].name, v.axes) for v in variants]
        return [sum(self.cost(*one) for one in named)] * repeats, np.ones(4, np.float32) + sum(
            self.wrong(*one) for one in named
        )


def build(keys: Sequence[VariantKey], tell: Callable[[str], None]) -> dict[VariantKey, BuiltVariant]:
    return {key: BuiltVariant("entry", (), 32, 0, True, None, b"code") for key in keys}


def tuned(plan: Plan, card: FakeCard, seconds: float = 1e9, **more: Any) -> Tuned:
    return Tuner(plan, "sm_90", card, lambda _: None, build=build, **more).run([DECODE], seconds)


def fewer_ahead(name: str, axes: Mapping[str, Any]) -> float:
    """All launches cost alike, but for a product that calls rows ahead."""
    return 1.0 + (axes["ahead"] / 100 if name == "decode_linear" else 0)


def test_a_faster_variant_takes_over_everywhere_it_was_called(plan: Plan) -> None:
    found = tuned(plan, FakeCard(fewer_ahead))
    linear = [c for c in found.changes if c.template == "decode_linear"]
    assert found.finished and linear and all(change.axes["ahead"] == (128, 0) for change in linear)
    assert all(change.after < change.before for change in found.changes)
    assert set(found.added) <= set(range(len(plan.variants), len(found.plan.variants)))


def test_what_is_a_little_faster_is_noise(plan: Plan) -> None:
    found = tuned(plan, FakeCard(lambda name, axes: 1.0 + axes.get("ahead", 0) * 1e-6))
    assert found.changes == () and found.plan == plan and found.measured > 10


def test_a_faster_variant_with_other_logits_is_not_kept(plan: Plan) -> None:
    wrong: Cost = lambda name, axes: 1.0 if name == "decode_linear" and axes["ahead"] == 0 else 0.0  # noqa: E731
    found = tuned(plan, FakeCard(fewer_ahead, wrong))
    assert all(change.axes["ahead"] != (128, 0) for change in found.changes)


def test_a_variant_that_the_device_refuses_is_passed_over(plan: Plan) -> None:
    def refused(name: str, axes: Mapping[str, Any]) -> float:
        if axes.get("warps") == 8:
            raise RunError("cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE")
        return fewer_ahead(name, axes)

    found, everything = tuned(plan, FakeCard(refused)), tuned(plan, FakeCard(fewer_ahead))
    assert found.finished and found.changes == everything.changes and 0 < found.measured < everything.measured


def test_when_time_is_up_what_was_found_is_kept_and_said_to_be_cut_short(plan: Plan) -> None:
    ticks = iter(range(10**6))
    found = tuned(plan, FakeCard(fewer_ahead), 20.0, now=lambda: float(next(ticks)))
    assert not found.finished and found.measured < 20


def test_decode_is_tuned_first_and_then_each_range_of_rows_that_was_built(plan: Plan) -> None:
    found = [(place.phase, place.rows) for place in places(plan, "sm_90")]
    assert found == [("decode", 1), ("prefill", 16)]


def test_without_a_gpu_it_says_so_in_one_line(hjgc: CommandLine, path: Path, tmp_path: Path) -> None:
    ran = hjgc("tune", str(path), "-o", str(tmp_path / "tuned.hjg"))
    assert ran.code == 2 and len(ran.err.strip().splitlines()) <= 3
    assert not (tmp_path / "tuned.hjg").exists()


def test_its_help_has_an_example(hjgc: CommandLine) -> None:
    assert "hjgc tune plan.hjg -o tuned.hjg" in hjgc("tune", "--help").out


def test_the_result_as_json_names_what_changed(plan: Plan) -> None:
    from hjgc.tools.commands.tune import as_data

    data = json.loads(json.dumps(as_data(Path("t.hjg"), tuned(plan, FakeCard(fewer_ahead)))))
    assert data["changes"][0].keys() == {"phase", "rows", "template", "axes", "before_ms", "after_ms"}
    assert data["measured"] > 0
