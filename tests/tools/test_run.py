"""Does `hjgc run` answer, and keep the answer apart from everything else it says?"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hjgc import SamplingParams
from hjgc.runtime.completion import Completion, Piece, Timings
from hjgc.tools.commands.run import code_lines, percentile
from tests.tools.command_line import PROGRAM, CommandLine, in_its_own_process, write_small_plan
from tests.tools.plans_to_compare import compiled_plan

REPORT: dict[str, Any] = {
    "target": "cpu",
    "segments": [
        {"kind": "static", "phase": "prefill", "schedule": "default", "key": 16, "state": "PROMOTED", "why": ""},
        {"kind": "static", "phase": "decode", "schedule": "default", "key": 1, "state": "REFUSED", "why": "no memory"},
        {"kind": "dynamic", "phase": "decode", "schedule": "logits_processor"},
    ],
    "totals": {"hits": 5, "plain_runs": 2, "dynamic_runs": 0, "bytes": 2048},
    "code": None,
}


class FakeLLM:
    """Answers any prompt with the same three pieces, and keeps what it was asked."""

    made: FakeLLM

    def __init__(
        self, plan: Path, *, weights: Path | None, device: str | None, progress: Callable[[str], None], **rules: Any
    ) -> None:
        if rules["trust"] == "templates":
            progress("build 1 of 1 kernels (rebuild)")
        self.rules = rules
        FakeLLM.made = self
        self.opened = (plan, weights, device)
        self.closed = False
        self.defaults = SamplingParams(temperature=0.7, top_k=40)
        self.tokenizer: object | None = object()
        self.session = SimpleNamespace(report=lambda: REPORT)

    def generate(
        self, prompt: str | list[int], params: SamplingParams, *, stream: bool, deadline: float | None
    ) -> FakeLLM:
        self.prompt, self.params, self.deadline = prompt, params, deadline
        assert stream
        return self

    def __iter__(self) -> Iterator[Piece]:
        yield from (Piece("Once", (5,)), Piece(" upon", (6, 7)), Piece(" a ☃", (8,)))

    @property
    def completion(self) -> Completion:
        timings = Timings(0.25, (0.001, 0.002, 0.003))
        return Completion("Once upon a ☃", (5, 6, 7, 8), 3, "length", timings)

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    monkeypatch.setattr("hjgc.LLM", FakeLLM)
    return FakeLLM


def test_standard_output_is_the_answer_and_nothing_else(hjgc: CommandLine, fake: type[FakeLLM]) -> None:
    ran = hjgc("run", "plan.hjg", "--prompt", "It was", "--stats")
    assert (ran.code, ran.out) == (0, "Once upon a ☃\n")
    assert (fake.made.prompt, fake.made.closed) == ("It was", True)


def test_stats_tell_times_and_graph_states(hjgc: CommandLine, fake: type[FakeLLM]) -> None:
    said = hjgc("run", "plan.hjg", "--prompt", "It was", "--stats").err.splitlines()
    assert said == [
        "load",
        "tokens: prompt 3, answer 4 (length)",
        "time to first token: 250.00 ms",
        "time per further token: 2.00 ms (p50 2.00, p99 3.00)",
        "segments on cpu: 1 PROMOTED, 1 REFUSED",
        "segment runs: 5 by graph, 2 plainly, 0 dynamic; graphs hold 2.0 KiB",
        "decode default 1: REFUSED: no memory",
    ]


def test_json_is_the_whole_completion(hjgc: CommandLine, fake: type[FakeLLM]) -> None:
    data = json.loads(hjgc("run", "plan.hjg", "--prompt", "It was", "--json").out)
    assert data == {
        "text": "Once upon a ☃",
        "token_ids": [5, 6, 7, 8],
        "prompt_tokens": 3,
        "finish_reason": "length",
        "ttft_ms": 250.0,
        "per_token_ms": [1.0, 2.0, 3.0],
        "report": REPORT,
    }


def test_options_go_over_the_defaults_of_the_model(hjgc: CommandLine, fake: type[FakeLLM]) -> None:
    options = "--max-tokens 9 --top-p 0.5 --seed 3 --stop END --stop . --deadline 1.5 --weights w --device cpu"
    assert hjgc("run", "plan.hjg", "--ids", "1, 2 3", *options.split()).code == 0
    made = fake.made
    assert (made.prompt, made.deadline) == ([1, 2, 3], 1.5)
    assert made.opened == (Path("plan.hjg"), Path("w"), "cpu")
    assert made.params == SamplingParams(temperature=0.7, top_k=40, top_p=0.5, seed=3, max_tokens=9, stop=("END", "."))


def test_a_plan_that_calls_a_function_of_pythons_says_how_to_pass_it(hjgc: CommandLine, tmp_path: Path) -> None:
    plan = write_small_plan(tmp_path, function="steer")
    ran = hjgc("run", plan, "--ids", "1,2,3")
    assert (ran.code, ran.out) == (2, "")
    for words in (
        "'steer'",
        "which this plan calls on the host",
        "from Python, pass functions={'steer': f} to hjgc.LLM",
    ):
        assert words in ran.error


def test_an_interruption_closes_the_session(
    hjgc: CommandLine, fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: FakeLLM) -> Iterator[Piece]:
        yield Piece("Once", (5,))
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeLLM, "__iter__", interrupted)
    ran = hjgc("run", "plan.hjg", "--prompt", "It was")
    assert (ran.code, ran.out, ran.err) == (130, "Once", "load\ninterrupted\n")
    assert fake.made.closed


def test_zero_is_an_option_like_any_other(hjgc: CommandLine, fake: type[FakeLLM]) -> None:
    hjgc("run", "plan.hjg", "--prompt", "a", "--temperature", "0", "--top-k", "0")
    assert (fake.made.params.temperature, fake.made.params.top_k) == (0.0, 0)


@pytest.mark.parametrize(
    ("given", "prompt"), [(b"two\nlines\n", "two\nlines"), (b"windows\r\n", "windows"), ("☃".encode(), "☃")]
)
def test_a_prompt_may_come_from_standard_input(
    given: bytes, prompt: str, hjgc: CommandLine, fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert hjgc("run", "plan.hjg", "--prompt", "-").code == 0
    assert fake.made.prompt == prompt


def test_a_prompt_that_is_no_text_is_refused(
    hjgc: CommandLine, fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    ran = hjgc("run", "plan.hjg", "--prompt", "-")
    assert (ran.code, ran.error) == (2, "error: standard input: expected text in UTF-8, found byte 0xff at 2")
    ran = hjgc("run", "plan.hjg", "--prompt", "ab\udcff")  # how Python passes on a byte that is no character
    assert (ran.code, ran.error) == (2, "error: --prompt: expected text in UTF-8, found byte 0xff at 2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ids", "1,2", "--temperature", "-1"), "temperature: expected 0 (greedy) or a number from 0.001 to 1000"),
        (("--ids", "1,50"), "prompt token 1: expected an id from 0 to 49 (the model's embedding), found 50"),
        (("--ids", ",".join(["1"] * 49)), "expected a prompt of at most 48 tokens (the model's context), found 49"),
        (("--prompt", ""), "expected a prompt of at least one character, found an empty one"),
        (("--prompt", "text"), "$.model.tokenizer: expected a tokenizer, found none; pass token ids"),
        (("--ids", "1", "--stop", "x"), "expected no stop strings, since the plan names no tokenizer"),
        (("--ids", "1", "--device", "cuda"), "expected a plan for cuda, found one for cpu"),
        (("--ids", "1", "--weights", "none"), "none: expected the folder of the plan's weights, found no folder"),
        (("--ids", "1", "--max-tokens", "0"), "max_tokens: expected None or a positive integer, found 0"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line(
    arguments: tuple[str, ...], says: str, hjgc: CommandLine, plan: Path
) -> None:
    ran = hjgc("run", plan, *arguments)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert says in ran.error


@pytest.mark.parametrize("change", ["missing", "short", "other bytes"])
def test_weights_that_are_not_those_of_the_plan_are_refused(change: str, hjgc: CommandLine, plan: Path) -> None:
    weights = plan.parent / "weights.bin"
    data = weights.read_bytes()
    weights.unlink()
    if change != "missing":
        weights.write_bytes(data[:-4] if change == "short" else bytes([data[0] ^ 1]) + data[1:])
    ran = hjgc("run", plan, "--ids", "1,2,3")
    assert (ran.code, ran.out) == (2, "")
    assert "weights.bin" in ran.error


def test_a_plan_without_a_tokenizer_answers_in_token_ids(hjgc: CommandLine, plan: Path) -> None:
    arguments = ("run", plan, "--ids", "1,2,3", "--max-tokens", "8", "--temperature", "0")
    data = json.loads(hjgc(*arguments, "--json").out)
    assert data["prompt_tokens"] == 3
    assert 1 <= len(data["token_ids"]) <= 8
    assert hjgc(*arguments).out.split() == [str(token) for token in data["token_ids"]]
    assert hjgc(*arguments, "--seed", "1").out == hjgc(*arguments, "--seed", "2").out  # greedy draws nothing


def test_the_end_of_the_context_is_said(hjgc: CommandLine, plan: Path) -> None:
    ids = ",".join(["3"] * 40)
    for seed in range(20):  # until an answer meets no end token on its way
        ran = hjgc("run", plan, "--ids", ids, "--seed", str(seed), "--json")
        assert ran.code == 0
        if json.loads(ran.out)["finish_reason"] == "context":
            assert ran.err.splitlines()[-1] == "the answer ended early: prompt and answer fill the plan's context"
            return
    pytest.fail("every answer met an end token")


def test_a_terminal_that_lacks_a_character_gets_a_question_mark() -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import hjgc
from tests.tools.test_run import FakeLLM
hjgc.LLM = FakeLLM
from hjgc.tools import cli
cli.main(["run", "plan.hjg", "--prompt", "a"])
"""
    root = str(Path(__file__).parents[2])
    process = in_its_own_process("env", "PYTHONUTF8=0", "PYTHONIOENCODING=latin-1", PROGRAM[0], "-c", program, root)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "Once upon a ?\n"), err


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (0.0, 1.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == value


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ((), {"strict": False, "trust": "plan"}),
        (("--strict",), {"strict": True, "trust": "plan"}),
        (("--rebuild",), {"strict": False, "trust": "templates"}),
    ],
)
def test_what_may_be_built_is_the_users_to_say(
    options: tuple[str, ...], rules: dict[str, Any], hjgc: CommandLine, fake: type[FakeLLM]
) -> None:
    ran = hjgc("run", "plan.hjg", "--prompt", "It was", *options)
    assert fake.made.rules == rules
    assert ("build 1 of 1 kernels (rebuild)" in ran.err) == ("--rebuild" in options)


def test_code_that_was_not_in_the_plan_is_told_of() -> None:
    failure = {"what": "join for sm_120", "reason": "unplanned rows", "why": "no registers left"}
    builds = {"built": 3, "reasons": {"unknown chip": 3}, "failed": 1, "failures": [failure], "seconds": 12.34}
    code = {"target": "sm_120", "why": "the plan has no code for sm_120", "swaps": ["compute_80 gave way to sm_120"]}
    assert list(code_lines(code | {"just_in_time": builds})) == [
        "code of sm_120: the plan has no code for sm_120",
        "kernels built just in time: 3 for unknown chip; 1 failed; 12.3 s",
        "compute_80 gave way to sm_120",
        "join for sm_120 (unplanned rows): no registers left",
    ]
    nothing = {"built": 0, "reasons": {}, "failed": 0, "failures": [], "seconds": 0.0}
    assert list(code_lines({"target": "sm_90", "why": "", "swaps": [], "just_in_time": nothing})) == []


def test_a_trace_of_the_request_is_written_whole(hjgc: CommandLine, tmp_path: Path) -> None:
    path, output = compiled_plan(tmp_path), tmp_path / "trace.json"
    ran = hjgc("run", path, "--ids", "1,2,3", "--max-tokens", "3", "--trace", output)
    assert ran.code == 0
    names = [event["name"] for event in json.loads(output.read_text())["traceEvents"]]
    assert names.count("first token") == 1 and "prefill, launch by launch" in names
    refused = hjgc("run", path, "--ids", "1", "--trace", tmp_path / "nowhere" / "trace.json")
    assert refused.code == 2 and "expected a folder to write into" in refused.err
