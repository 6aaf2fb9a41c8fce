"""Does `hjgc bench` measure what it says, on everybody alike? (How long anything takes is not tested.)"""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format.errors import HjgcError
from hjgc.tools import benchmarking
from hjgc.tools.benching import plot, systems, text
from hjgc.tools.peers import process
from hjgc.tools.peers.client import PeerProcess
from hjgc.tools.peers.peer import Answer, Counts, Startup, timed_answer
from tests.tools.command_line import CommandLine, Ran

LENGTHS, DECODE, REPEAT = (3, 16), 4, 2
SYSTEMS = ["hjgc plain", "hjgc graph", "eager", "ort"]


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "plan.hjg"
    compile_model(model, path, prompt=(1, 32), context=64)
    return path


@pytest.fixture(scope="module")
def output(compiled: Path) -> Path:
    return compiled.parent / "bench.json"


@pytest.fixture(scope="module")
def ran(compiled: Path, model: Path, output: Path) -> Ran:
    """One run with both modes and both peers, for all tests that look at its result."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as out, io.StringIO() as err:
        patch.setattr(benchmarking, "PAUSE", 0.0)
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        arguments: list[object] = [
            compiled, "--weights", model.parent, "--lengths", "3,16", "--decode", DECODE, "--repeat", REPEAT,
            "--hf", model.parent, "--onnx", model, "--threads", 1, "--json", "-o", output,
        ]  # fmt: skip
        from hjgc.tools import cli

        code = cli.run(["bench", *map(str, arguments)])
        return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def shown(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_every_system_is_measured_at_every_length(shown: dict[str, Any]):
    assert [system["name"] for system in shown["systems"]] == SYSTEMS
    assert [(row["length"], row["system"]) for row in shown["rows"]] == [(n, name) for n in LENGTHS for name in SYSTEMS]
    for row in shown["rows"]:
        assert row["ttft_ms"]["count"] == REPEAT and row["token_ms"]["count"] == REPEAT * DECODE
        for points in (row["ttft_ms"], row["token_ms"]):
            assert 0 < points["p50"] <= points["p90"] <= points["p99"] <= points["max"]
        assert row["cold_ttft_ms"] > 0


def test_all_systems_choose_the_same_tokens(shown: dict[str, Any]):
    for length in LENGTHS:
        tokens = [row["tokens"] for row in shown["rows"] if row["length"] == length]
        assert len(tokens[0]) == DECODE + 1 and tokens == [tokens[0]] * len(SYSTEMS)
    assert [row["tokens_differ_at"] for row in shown["rows"]] == [None] * len(shown["rows"])


def test_graph_mode_replays_every_step_and_plain_mode_none(shown: dict[str, Any]):
    rows = {(row["system"], row["length"]): row for row in shown["rows"]}
    for length in LENGTHS:
        graph, plain = rows["hjgc graph", length], rows["hjgc plain", length]
        assert graph["replayed"] == graph["ran"] == REPEAT * (1 + DECODE)
        assert (plain["replayed"], plain["ran"]) == (0, REPEAT * (1 + DECODE))
    segments = {system["name"]: system["details"].get("segments") for system in shown["systems"]}
    assert {entry["state"] for entry in segments["hjgc graph"]} == {"PROMOTED"}
    assert {entry["state"] for entry in segments["hjgc plain"]} == {"WARM"}
    assert all(system["graphs_settled"] for system in shown["systems"])


def test_start_up_is_told_in_parts_that_make_the_whole(shown: dict[str, Any]):
    for system in shown["systems"]:
        parts = dict(system["startup_ms"])
        whole = parts.pop("to_first_token")
        assert sum(parts.values()) == pytest.approx(whole, abs=0.01)
        assert set(parts) == {"import", "weights", "other", "first_request"} | (
            {"plan"} if system["name"].startswith("hjgc") else set()
        )


def test_the_result_says_where_and_how_it_was_measured(shown: dict[str, Any]):
    assert shown["schema"] == "hjgc-bench-1"
    assert shown["settings"] == {"lengths": [3, 16], "decode": DECODE, "repeat": REPEAT, "threads": 1, "seed": 0}
    assert {"processor", "cores", "usable_cores", "system", "python", "environment"} <= set(shown["machine"])
    versions = {name for system in shown["systems"] for name in system["versions"]}
    assert versions == {"hjgc", "torch", "transformers", "onnxruntime"}


def test_the_file_holds_what_is_printed_and_progress_goes_to_standard_error(ran: Ran, output: Path):
    assert output.read_text() == ran.out
    assert ran.err.splitlines()[:3] == ["start hjgc plain", "start hjgc graph", "start eager"]


def test_the_table_has_a_line_for_each_row_and_says_who_chose_otherwise(shown: dict[str, Any]):
    other = json.loads(json.dumps(shown))
    other["rows"][-1]["tokens_differ_at"] = 2
    lines = "\n".join(text.text(other)).splitlines()
    assert len([line for line in lines if line.endswith("the same")]) == len(shown["rows"]) - 1
    assert next(line for line in lines if line.endswith("differ at 2")).split()[1] == "ort"
    assert "hjgc graph: segments that ran: 3 PROMOTED" in "\n".join(lines)


def test_every_token_is_timed_and_fed_with_the_one_before():
    fed: list[int] = []

    def further(token: int) -> int:
        fed.append(token)
        return token + 1

    answer = timed_answer(lambda: 10, further, 4)
    assert answer.tokens == (10, 11, 12, 13) and fed == [10, 11, 12] and len(answer.further) == 3


def test_parts_of_the_start_add_up():
    startup = Startup()
    for part in ("import", "weights", "import"):
        with startup.part(part):
            pass
    assert list(startup.seconds) == ["import", "weights"]


class ScriptedPeer:
    """Answers without a model."""

    def __init__(self) -> None:
        self.startup, self.versions, self.closed = Startup({"import": 1.0}), {"it": "2"}, False
        self.asked = 0

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        return Answer(0.5, (0.25,) * (tokens - 1), (sum(ids),) * tokens)

    def counts(self) -> Counts:
        self.asked += 1
        return Counts(self.asked, 2 * self.asked)

    def settle(self, timeout: float) -> bool:
        return timeout > 1

    def details(self) -> dict[str, Any]:
        raise HjgcError("expected details, found none")

    def close(self) -> None:
        self.closed = True


def test_a_process_answers_line_by_line_until_something_fails(monkeypatch: pytest.MonkeyPatch):
    peer = ScriptedPeer()
    monkeypatch.setattr(process, "make_peer", lambda spec: peer)
    requests = [
        {"kind": "scripted"},
        {"verb": "answer", "ids": [1, 2], "tokens": 2},
        {"verb": "series", "ids": [1, 2], "tokens": 3, "repeat": 2, "warm_up": 1, "rest": 0.002},
        {"verb": "settle", "timeout": 0.5},
        {"verb": "details"},
        {"verb": "settle", "timeout": 2},
    ]
    answers = io.StringIO()
    process.serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"startup": {"import": 1.0}, "versions": {"it": "2"}},
        {"first": 0.5, "further": [0.25], "tokens": [3, 3], "replayed": 1, "ran": 2},
        {"firsts": [0.5] * 2, "furthers": [0.25] * 4, "answers": [[3, 3, 3]], "replayed": 1, "ran": 2},
        {"settled": False},
        {"error": "expected details, found none", "code": 2},
    ]
    assert peer.closed


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"kind": "ort", "model": "{folder}/config.json", "threads": 1},
            "expected a model that loads, ONNX Runtime says",
        ),
        ({"kind": "plan", "plan": "{folder}/config.json", "weights": None, "device": None, "mode": "plain"}, "a plan"),
        (
            {"kind": "abacus"},
            "expected a peer of kind plan, eager, static, ort, function or ort_function, found 'abacus'",
        ),
    ],
)
def test_a_peer_that_cannot_start_says_why(model: Path, spec: dict[str, Any], words: str):
    given = {key: value.format(folder=model.parent) if isinstance(value, str) else value for key, value in spec.items()}
    with pytest.raises(HjgcError, match="it: .*" + words):
        PeerProcess("it", given, 1)


def test_a_peer_that_dies_is_an_error_and_not_a_wait(model: Path):
    with (
        pytest.raises(HjgcError, match="ort: expected an answer, found its process ended: exit code -9"),
        PeerProcess("ort", {"kind": "ort", "model": str(model), "threads": 1}, 1) as peer,
    ):
        assert len(peer.answer([1, 2, 3], 2).tokens) == 2
        os.kill(peer._process.pid, signal.SIGKILL)
        peer._process.wait()
        peer.answer([1, 2, 3], 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peers", "eager"), "expected a model for eager, found none; add --hf DIR"),
        (("--peers", "compile"), "expected a model for compile, found none; add --hf DIR"),
        (("--peers", "ort,vllm"), "expected eager, compile, ort or ort-cuda with commas between them, found 'vllm'"),
        (("--peers", "ort-cuda"), "expected peers that run on the CPU, found ort-cuda, which is measured on a GPU"),
        (("--mode", "graph,fast"), "expected plain, jit, graph, hybrid or both with commas between them, found 'fast'"),
        (("--mode", ","), "expected at least one of plain, jit, graph, hybrid, found none"),
        (("--contexts", "16"), "--contexts: expected a plan measured on a GPU, found one measured on the CPU"),
        (("--cold", "1"), "--cold: expected a plan measured on a GPU"),
        (("--device", "cuda"), "expected a plan for a GPU, found one for cpu; compile it again with --target sm_90"),
        (("--plot", "nowhere/out.png"), "expected a folder to write into"),
        (("--onnx", "nowhere.onnx"), "nowhere.onnx: --onnx: expected the model of a peer, found nothing there"),
        (("--lengths", "60", "--decode", "5"), "within the plan's context of 64 tokens, found 60 + 5"),
        (("--lengths", "ten"), "expected whole numbers, say 10,50,100, found 'ten'"),
        (("-o", "nowhere/out.json"), "expected a folder to write into"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    hjgc: CommandLine, compiled: Path, arguments: tuple[str, ...], words: str
):
    ran = hjgc("bench", compiled, *arguments)
    assert ran.code == 2 and words in ran.error and "start" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--decode", "4", "--contexts", "63"), "--contexts: expected prompt and answer within the plan's context"),
        (("--decode", "0", "--contexts", "9"), "--contexts: expected tokens to decode there, found --decode 0"),
        (("--peers", "ort"), "expected peers that run on the GPU, found ort"),
        (("--peers", "ort-cuda"), "expected a model for ort-cuda, found none; add --onnx MODEL.onnx"),
        (("--decode", "0", "--lengths", "64"), "within the plan's context of 64 tokens, found 64 + 1"),
    ],
)
def test_so_is_what_cannot_be_measured_on_a_gpu(
    hjgc: CommandLine, compiled: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
):
    monkeypatch.setattr(systems, "on_a_device", lambda plan, device: True)
    ran = hjgc("bench", compiled, "--lengths", "3", *arguments)
    assert ran.code == 2 and words in ran.error and "limits" not in ran.err


@pytest.mark.parametrize("named", [("--peers", "ort-cuda"), ()])
def test_a_peer_on_the_gpu_needs_the_onnx_runtime_for_it(
    hjgc: CommandLine, compiled: Path, model: Path, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...]
):
    monkeypatch.setattr(systems, "on_a_device", lambda plan, device: True)
    ran = hjgc("bench", compiled, "--lengths", "3", "--onnx", model, *named)
    assert ran.code == 2 and "limits" not in ran.err
    assert ran.error.startswith("error: onnxruntime: expected CUDAExecutionProvider, found ")
    assert ran.error.endswith("; pip uninstall onnxruntime, then pip install 'hjgc[ort-gpu]'")


def test_a_picture_needs_its_library(hjgc: CommandLine, compiled: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    ran = hjgc("bench", compiled, "--plot", compiled.parent / "out.png")
    assert ran.code == 2 and ran.error.endswith("found it not installed; pip install 'hjgc[plot]'")


def test_a_hybrid_replays_what_lies_around_the_caller(hjgc: CommandLine, compiled: Path, model: Path):
    picture = compiled.parent / "hybrid.png"
    ran = hjgc(
        "bench", compiled, "--weights", model.parent, "--lengths", "3", "--mode", "graph,hybrid", "--decode", "2",
        "--repeat", "1", "--json", "--plot", picture,
    )  # fmt: skip
    graph, hybrid = json.loads(ran.out)["rows"]
    assert graph["tokens"] == hybrid["tokens"] and hybrid["tokens_differ_at"] is None
    assert (graph["replayed"], graph["ran"]) == (3, 3) and (hybrid["replayed"], hybrid["ran"]) == (6, 9)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_help_shows_a_line_for_a_gpu(hjgc: CommandLine):
    assert "hjgc bench plan.hjg --device cuda --mode" in hjgc("bench", "--help").out
