"""Does `hjgc bench` measure a plan that is a function, beside ONNX Runtime? (How long anything takes is not tested.)"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjgc.tools.benching import calls, calls_text
from tests.plan_format.function_plan import write_function_plan
from tests.tools.command_line import CommandLine, Ran, write_small_plan

CALLS, SYSTEMS = 12, ["hjgc plain", "hjgc graph", "ort"]


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two static segments around a dynamic one of two islands. Not to be changed."""
    return write_function_plan(tmp_path_factory.mktemp("function"))


@pytest.fixture(scope="module")
def ran(function: Path) -> Ran:
    """One run for all tests that look at its result."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as out, io.StringIO() as err:
        patch.setattr(calls, "PAUSE", 0.0)
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        arguments: list[object] = [
            function, "--size", "K=3", "--calls", CALLS, "--against", function.with_name("model.onnx"), "--threads", 1,
            "--json", "-o", function.with_name("bench.json"),
        ]  # fmt: skip
        from hjgc.tools import cli

        code = cli.run(["bench", *map(str, arguments)])
        return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def shown(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_every_system_is_called_as_often_as_was_asked(shown: dict[str, Any]) -> None:
    assert [system["name"] for system in shown["systems"]] == [row["system"] for row in shown["rows"]] == SYSTEMS
    for row in shown["rows"]:
        points = row["call_ms"]
        assert points["count"] == CALLS and 0 < points["p50"] <= points["p90"] <= points["p99"] <= points["max"]
        assert row["first_call_ms"] > 0 and row["host_bytes"] > 0


def test_graphs_replay_both_static_segments_and_plain_calls_none(shown: dict[str, Any]) -> None:
    plain, graph, ort = shown["rows"]
    assert [(row["replayed"], row["ran"]) for row in shown["rows"]] == [(0, 3 * CALLS), (2 * CALLS, 3 * CALLS), (0, 0)]
    assert graph["captured_ms"] > 0
    assert plain["captured_ms"] is None and ort["captured_ms"] is None


def test_ratios_are_those_of_medians_and_all_give_the_same(shown: dict[str, Any]) -> None:
    ort = shown["rows"][-1]["call_ms"]["p50"]
    for row in shown["rows"]:
        assert row["of_ort"] == pytest.approx(row["call_ms"]["p50"] / ort, abs=1e-3)
        assert row["outputs_differ_at"] is None


def test_start_up_is_told_in_parts_that_make_the_whole(shown: dict[str, Any]) -> None:
    for system in shown["systems"]:
        parts = dict(system["startup_ms"])
        whole = parts.pop("to_first_outputs")
        assert sum(parts.values()) == pytest.approx(whole, abs=0.01)
        ours = {"plan"} if system["name"].startswith("hjgc") else set[str]()
        assert set(parts) == {"import", "weights", "other", "first_call"} | ours


def test_segments_islands_and_memory_are_told(shown: dict[str, Any]) -> None:
    details = shown["systems"][1]["details"]
    assert [(entry["segment"], entry["launches"], entry["state"]) for entry in details["segments"]] == [
        (0, 2, "PROMOTED"), (2, 1, "PROMOTED"),
    ]  # fmt: skip
    (dynamic,) = details["dynamic"]
    assert (dynamic["segment"], dynamic["launches"]) == (1, 2)
    assert dynamic["reasons"] == ["HOST_CONTROL_FLOW", "HOST_TYPE"]
    assert details["islands"]["runs"] >= 2 * details["calls"] and details["islands"]["bytes_to_host"] == 0
    assert details["memory"]["arena"] > 0 and details["graph_bytes"] > 0


def test_the_result_says_with_what_it_was_measured(shown: dict[str, Any], ran: Ran, function: Path) -> None:
    assert shown["schema"] == "hjgc-bench-calls-1"
    assert shown["settings"] == {
        "calls": CALLS, "threads": 1, "seed": 0, "sizes": {"N": 8, "K": 3}, "feed": None,
        "made_up": "made up: floats normal, whole numbers and truth values 0 or 1",
    }  # fmt: skip
    assert function.with_name("bench.json").read_text() == ran.out
    assert ran.err.splitlines()[:4] == ["start hjgc plain", "start hjgc graph", "start ort", "turn 1 of 10"]


def test_the_table_has_a_line_for_each_system_and_says_what_differs(shown: dict[str, Any]) -> None:
    other = json.loads(json.dumps(shown))
    other["rows"][1]["outputs_differ_at"] = "y"
    lines = "\n".join(calls_text.text(other)).splitlines()
    assert "a function for cpu, 1.1 MiB of weights" in lines[0]
    assert lines[3].startswith(
        "inputs made up: floats normal, whole numbers and truth values 0 or 1 (seed 0); N 8, K 3;"
    )
    table = {line[:10]: line for line in lines[7:10]}
    assert table["hjgc plain"].endswith("the same") and table["hjgc graph"].endswith("differ: y")
    assert "segments: 2 static (3 launches), 1 dynamic (2 launches)" in lines
    assert "  segment 1 is dynamic (2 launches): HOST_CONTROL_FLOW, HOST_TYPE" in lines
    assert any(line.startswith("islands: 2 on CPUExecutionProvider, ") for line in lines)


def test_segments_that_are_not_served_as_one_are_counted_once(shown: dict[str, Any]) -> None:
    other = json.loads(json.dumps(shown))
    details = other["systems"][0]["details"]
    whole = details["segments"][0] | {"last_segment": 2, "launches": 5, "state": "REFUSED"}
    details["segments"].insert(0, whole)
    assert "segments: 2 static (3 launches), 1 dynamic (2 launches)" in "\n".join(calls_text.text(other))
    whole["state"] = "PROMOTED"
    assert "segments: 3 static (8 launches), " in "\n".join(calls_text.text(other))


def test_what_crosses_to_a_device_is_told(shown: dict[str, Any]) -> None:
    other = json.loads(json.dumps(shown))
    details = other["systems"][0]["details"]
    details["islands"] |= {"islands": 2, "runs": 20, "bytes_to_host": 20480, "bytes_to_device": 5120, "copy_seconds": 1}
    details["device_memory"] = {"taken": 3 << 20}
    text = "\n".join(calls_text.text(other))
    assert "copies of 2.0 KiB to the host and 512 B to the device take 100.000 ms" in text
    assert "; of the device 3.0 MiB taken" in text


def test_inputs_of_a_file_are_measured(
    hjgc: CommandLine, function: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PAUSE", 0.0)
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 4), np.float32), go=True, text=["a"])
    ran = hjgc("bench", function, "--feed", tmp_path / "x.npz", "--calls", "1", "--mode", "plain")
    assert ran.code == 0, ran.err
    assert f"inputs of {tmp_path / 'x.npz'}; N 2, " in ran.out
    assert "of ort" not in ran.out


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (7, [1] * 7), (12, [1] * 8 + [2] * 2), (100, [10] * 10)])
def test_calls_are_cut_into_turns(count: int, expected: list[int]) -> None:
    assert calls.parts(count, 10) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--lengths", "3"), "--lengths: expected a decoder with this option, found a plan that is a function"),
        (("--onnx", "m.onnx"), "--onnx: expected a decoder with this option, found a plan that is a function"),
        (("--launches",), "--launches: expected a decoder with this option, found a plan that is a function"),
        (("--decode", "64"), "--decode: expected a decoder with this option"),
        (("--mode", "hybrid"), "--mode: expected plain, jit or graph for a plan that is a function, found hybrid"),
        (("--size", "N=9"), "--size: expected N of 0 to 8, found 9; compile again with --size N=0:9"),
        (("--size", "Q=9"), "--size: expected a size of the plan's inputs (N, K), found 'Q'"),
        (("--size", "N"), "expected NAME=VALUE, say batch=8, found 'N'"),
        (("--feed", "x.npz", "--size", "N=1"), "--size: expected made-up inputs, found --feed too"),
        (("--feed", "x.npz"), "x.npz: expected a file of arrays, found nothing there"),
        (("--against", "nowhere.onnx"), "nowhere.onnx: --against: expected an ONNX file, found no such file"),
        (("--calls", "0"), "'--calls': 0 is not in the range x>=1"),
        (("--device", "cuda"), "expected a plan for a GPU, found one for cpu"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    arguments: tuple[str, ...], says: str, hjgc: CommandLine, function: Path
) -> None:
    ran = hjgc("bench", function, *arguments)
    assert (ran.code, ran.out) == (2, "") and says in ran.error and "start" not in ran.err


def test_a_decoder_takes_no_options_of_a_function(hjgc: CommandLine, tmp_path: Path) -> None:
    ran = hjgc("bench", write_small_plan(tmp_path), "--calls", "3")
    assert ran.code == 2
    assert (
        "--calls: expected a plan that is a function with this option, found a decoder; leave --calls out" in ran.error
    )


def test_a_peer_that_fails_says_why(hjgc: CommandLine, function: Path) -> None:
    ran = hjgc("bench", function, "--against", function, "--mode", "plain", "--calls", "1")
    assert ran.code == 2
    assert ran.error.startswith(f"error: ort: {function}: expected a model that loads, ONNX Runtime says: ")
