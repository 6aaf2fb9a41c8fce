"""Does `hjgc bench` measure on a device what it says? (The device here is the CPU, with made-up limits.)"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format.errors import HjgcError
from hjgc.tools import cli
from hjgc.tools.benching import alone, device, fresh, limits, systems
from hjgc.tools.benching.floors import Limits
from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.systems import Contender
from hjgc.tools.peers.peer import Answer, Series
from tests.plans import small_plan
from tests.tools.command_line import CommandLine, Ran

LENGTHS, CONTEXTS, DECODE, REPEAT = (3, 17), (16, 40), 4, 6
LIMITS = Limits(read=1e9, copy=1e9, link=1e9, matrix=1e12)
SYSTEMS = ["hjgc plain", "hjgc jit", "hjgc graph", "hjgc hybrid"]


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("device")
    compile_model(model, folder / "plan.hjg", prompt=(1, 32), context=64)
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as out, io.StringIO() as err:
        patch.setattr(limits, "measured", lambda: LIMITS)
        patch.setattr(systems, "on_a_device", lambda plan, device: True)
        patch.setattr(fresh, "REST", 0.05)
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        arguments: list[object] = [
            folder / "plan.hjg", "--weights", model.parent, "--lengths", "3,17", "--contexts", "16,40",
            "--decode", DECODE, "--repeat", REPEAT, "--mode", "both,jit,graph,hybrid", "--cold", 1, "--capturing", 1,
            "--threads", 1, "--json", "--plot", folder / "out.png",
        ]  # fmt: skip
        code = cli.run(["bench", *map(str, arguments)])
        assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
        return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def shown(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def measured(shown: dict[str, Any]) -> list[str]:
    return [system["name"] for system in shown["systems"] if system["unavailable"] is None]


def test_the_json_has_the_keys_of_the_cpu_and_more(shown: dict[str, Any]):
    assert shown["schema"] == "hjgc-bench-1"
    assert list(shown) == [
        "plan", "machine", "schema", "date", "seconds", "load_average", "settings", "limits", "step", "systems", "rows",
        "decode", "cold", "capturing", "launches", "problems", "interrupted",
    ]  # fmt: skip
    assert {"contexts", "cold", "capturing", "lengths", "decode", "repeat"} <= set(shown["settings"])
    assert "cuda" in shown["machine"] and shown["limits"]["read"] == 1e9


def test_every_mode_is_measured_or_says_why_not(shown: dict[str, Any]):
    assert {system["name"] for system in shown["systems"]} == set(SYSTEMS)
    for system in shown["systems"]:
        if system["unavailable"] is not None:
            assert system["name"] == "hjgc jit" and "jit" in system["unavailable"]
    places = [(row["length"], row["system"]) for row in shown["rows"]]
    assert places == [(length, name) for length in LENGTHS for name in measured(shown)]


def test_every_time_stands_beside_the_floor_of_the_run(shown: dict[str, Any]):
    for row in shown["rows"]:
        assert row["ttft_ms"]["count"] == REPEAT
        assert row["of_floor"]["p50"] == pytest.approx(row["ttft_ms"]["p50"] / row["floor_ms"], rel=1e-2)
        assert row["tail"] == pytest.approx(row["ttft_ms"]["p99"] / row["ttft_ms"]["p50"], rel=1e-3)
        assert row["tokens_differ_at"] is None
    assert [(row["context"], row["system"]) for row in shown["decode"]] == [
        (context, name) for context in CONTEXTS for name in measured(shown)
    ]
    for row in shown["decode"]:
        assert row["token_ms"]["count"] == 2 * DECODE and row["of_floor"]["p99"] > 0


def test_plain_replays_nothing_graph_everything_and_hybrid_what_is_around_the_caller(shown: dict[str, Any]):
    shares = {row["system"]: row["replayed"] / row["ran"] for row in shown["rows"] if row["length"] == 3}
    assert (shares["hjgc plain"], shares["hjgc graph"]) == (0, 1) and shares["hjgc hybrid"] == pytest.approx(2 / 3)


def test_a_fresh_process_answers_first_with_nothing_captured(shown: dict[str, Any]):
    (row,) = shown["cold"]
    assert (row["length"], row["replayed"]) == (3, 0) and row["ran"] > 0
    parts = dict(row["startup_ms"])
    whole = parts.pop("to_first_token")
    assert set(parts) == {"import", "plan", "weights", "other", "first_request"}
    assert sum(parts.values()) == pytest.approx(whole, abs=0.01)


def test_requests_are_watched_while_every_graph_is_built(shown: dict[str, Any]):
    capturing = shown["capturing"]
    assert capturing["settled"] and capturing["runs"] == 1 and capturing["worker"][0]["builds"] > len(LENGTHS)
    assert {row["length"] for row in capturing["rows"]} == set(LENGTHS)
    assert all(row["idle_ms"]["count"] >= 20 for row in capturing["rows"])


def test_progress_names_what_is_measured(ran: Ran):
    lines = ran.err.splitlines()
    assert lines[:3] == ["the device's own limits", "hjgc plain: start", "hjgc plain: first answer after 3 tokens"]
    assert "hjgc graph: decode at context 40" in lines and "hjgc graph: a fresh process for 3 tokens" in lines


def test_a_system_that_fails_does_not_lose_the_others():
    told: list[str] = []
    contender = Contender({"kind": "abacus"}, (3,), (), 1)
    with pytest.raises(HjgcError, match=r"one: .*found 'abacus'"):  # all of them failed
        alone.measure_all({"one": contender, "two": contender}, Settings((3,), 1, 1, 1, 0, 50), told.append, {})
    assert [line.split(":")[0] for line in told] == ["one", "note", "two", "note"]


def test_a_fresh_process_that_fails_does_not_lose_what_was_measured(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object) -> None:
        raise HjgcError("hjgc graph: it stopped")

    monkeypatch.setattr(limits, "measured", lambda: LIMITS)
    monkeypatch.setattr(device, "measure_all", lambda *arguments: arguments[-1].update({"hjgc plain": alone.Found()}))
    monkeypatch.setattr(fresh, "cold", fail)
    monkeypatch.setattr(fresh, "capturing", fail)
    contender = Contender({"kind": "plan", "mode": "plain"}, (3,), (), 1)
    told: list[str] = []
    shown = device.bench_device(small_plan(), {"hjgc plain": contender}, Settings((3,), 1, 1, 1, 0, 50), told.append)
    assert shown["problems"] == ["hjgc graph: it stopped"] * 2 and shown["cold"] == [] and shown["capturing"] is None
    assert "note: hjgc graph: it stopped" in told


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_an_interruption_keeps_what_was_measured_before(
    stop: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
):
    series = Series((0.004,), (0.003,), ((1, 2),), 2, 2)
    measured = alone.Found(prompts={3: alone.Cell(Answer(0.005, (0.003,), (1, 2)), series)})

    def measure(*arguments: Any) -> None:
        arguments[-1]["hjgc plain"] = measured
        raise stop

    monkeypatch.setattr(limits, "measured", lambda: LIMITS)
    monkeypatch.setattr(device, "measure_all", measure)
    contender = Contender({"kind": "plan", "mode": "plain"}, (3, 5), (), 1)
    told: list[str] = []
    shown = device.bench_device(small_plan(), {"hjgc plain": contender}, Settings((3, 5), 1, 1, 1, 0, 50), told.append)
    assert shown["interrupted"] == code and told[-1] == "note: interrupted; what was measured before is kept"
    assert [row["length"] for row in shown["rows"]] == [3]


def test_an_interruption_before_anything_was_measured_is_one(monkeypatch: pytest.MonkeyPatch):
    def measure(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "measured", lambda: LIMITS)
    monkeypatch.setattr(device, "measure_all", measure)
    contender = Contender({"kind": "plan", "mode": "plain"}, (3,), (), 1)
    with pytest.raises(KeyboardInterrupt):
        device.bench_device(small_plan(), {"hjgc plain": contender}, Settings((3,), 1, 1, 1, 0, 50), [].append)


def test_a_machine_without_a_gpu_is_told_in_one_line(hjgc: CommandLine, plan: Path, monkeypatch: pytest.MonkeyPatch):
    def no_driver() -> Limits:
        raise HjgcError("the device's limits cannot be measured: no NVIDIA driver found")

    monkeypatch.setattr(limits, "measured", no_driver)
    monkeypatch.setattr(systems, "on_a_device", lambda plan, device: True)
    ran = hjgc("bench", plan, "--device", "cuda", "--decode", "8")
    assert ran.code == 2 and ran.error.endswith("cannot be measured: no NVIDIA driver found")


@pytest.mark.parametrize(
    ("targets", "device", "on_a_gpu"),
    [
        (("cpu",), None, False),
        (("sm_90",), None, True),
        (("compute_80",), "cuda", True),
        (("cpu", "sm_90"), None, False),
        (("cpu", "sm_90"), "cuda", True),
        (("cpu", "sm_90"), "sm_90", True),
        (("cpu", "sm_90"), "cpu", False),
    ],
)
def test_a_plan_is_measured_on_a_gpu_if_somebody_says_so_or_it_is_for_nothing_else(
    targets: tuple[str, ...], device: str | None, on_a_gpu: bool
):
    plan = msgspec.structs.replace(small_plan(), targets=targets)
    assert systems.on_a_device(plan, device) is on_a_gpu
