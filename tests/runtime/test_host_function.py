"""Does everything around a function of the caller's run as it would without it, by graphs, and is the function called
with what it should see?"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hjgc import LLM, PlanError, RunError
from hjgc.compiler import compile_model
from hjgc.plan_format.codec import save
from hjgc.runtime import HostFunction, LogitsProcessor, Session
from hjgc.runtime.functions import function_names
from hjgc.runtime.opening import open_session
from tests.compiler.exports import SMALL, changed, copy_of, with_host_function
from tests.plans import CONSTANTS, HIDDEN, small_plan
from tests.runtime.fake_device import FakeDevice
from tests.runtime.serving import answer, captured, entry

Rows = NDArray[np.float32]
IDS = list(range(3, 14))
BETWEEN = "model.layers.0/Add_1"
FIRST = ["embed", "rotary", "0.attention_inputs", "0.attention", "0.o", "0.gate_up", "0.down"]
SECOND = ["1.attention_inputs", "1.attention", "1.o", "1.gate_up", "1.down", "head", "sample"]


def unchanged(rows: Rows) -> None:
    """The function that does nothing."""


def doubled(rows: Rows) -> Rows:
    return 2 * rows


def doubled_in_place(rows: Rows) -> None:
    rows *= 2


@contextmanager
def calling(function: HostFunction | None = unchanged, **options: Any) -> Generator[tuple[Session, FakeDevice]]:
    """A session on a fake device, whose plan calls `steer` between its two layers."""
    device = FakeDevice(small_plan(function="steer"))
    functions = {} if function is None else {"steer": function}
    with Session(device.plan, device, functions=functions, **options) as session:
        yield session, device


def test_before_anything_is_captured_the_function_is_called_between_two_runs_of_launches() -> None:
    seen: list[tuple[int, ...]] = []
    with calling(lambda rows: seen.append(rows.shape), capture=False) as (session, device):
        answer(session, 3, tokens=3)
        assert device.log == [*FIRST, "host host", *SECOND] * 3
        assert seen == [(3, HIDDEN), (1, HIDDEN), (1, HIDDEN)]


def test_graphs_serve_all_but_the_function_once_they_are_captured() -> None:
    with calling() as (session, device):
        expected = answer(session)
        captured(session)
        device.log.clear()
        assert answer(session) == expected
        graphs = ["replay prefill@4[7]", "host host", "replay prefill@4[7]"]
        assert device.log == graphs + ["replay decode[7]", "host host", "replay decode[7]"] * 3
        for phase, key in (("prefill", 4), ("decode", 1)):
            assert [entry(session, phase, key, segment=number)["state"] for number in (0, 2)] == ["PROMOTED"] * 2


def test_every_part_of_a_long_prompt_passes_through_the_function() -> None:
    seen: list[int] = []
    with calling(lambda rows: seen.append(len(rows)), capture=False) as (session, device):
        answer(session, 37, tokens=1)
        assert seen == [16, 16, 5]
        part = [*FIRST, "host host", SECOND[0]]
        assert device.log == part * 2 + [*FIRST, "host host", *SECOND]


def test_a_logits_processor_may_come_on_top() -> None:
    def leave(ids: object, row: object) -> None: ...

    process: LogitsProcessor = leave
    with calling() as (session, device):
        expected = answer(session, process=process)
        captured(session)
        device.log.clear()
        assert answer(session, process=process) == expected == answer(session)
        step = ["replay decode[7]", "host host", "replay decode[6]", "host caller", "replay decode[1]"]
        assert device.log[5:10] == step


def test_what_the_function_gives_is_what_the_rest_is_computed_from() -> None:
    answers: list[list[int]] = []
    for function in (unchanged, doubled, doubled_in_place):
        with calling(function) as (session, _):
            answers.append(answer(session, tokens=8))
            captured(session)
            assert answer(session, tokens=8) == answers[-1]
    assert answers[0] != answers[1] == answers[2]


def test_a_check_of_what_lies_behind_the_function_calls_no_function_of_the_caller() -> None:
    calls: list[int] = []
    with calling(lambda rows: calls.append(len(rows))) as (session, device):
        answer(session)
        made = len(calls)
        captured(session)
        assert len(calls) == made
        assert entry(session, segment=2)["state"] == "PROMOTED"
        assert device.log.count("host host") > made, "rows pass unchanged instead"


def test_a_wrong_byte_behind_the_function_is_found_out_and_its_launch_named() -> None:
    with calling() as (session, device):
        device.corrupt = {"1.o"}
        expected = answer(session)
        captured(session)
        assert entry(session, segment=2)["quarantine"]["name"] == "1.o"
        assert entry(session, segment=0)["state"] == "PROMOTED"
        assert answer(session) == expected


def test_a_wrong_byte_that_only_the_function_reads_is_found_out() -> None:
    with calling() as (session, device):
        device.corrupt = {"0.down"}
        answer(session)
        captured(session)
        assert entry(session, segment=0)["quarantine"]["name"] == "0.down"
        assert entry(session, segment=2)["state"] == "PROMOTED"


def test_no_step_is_launched_ahead_of_the_function_and_the_report_counts_why() -> None:
    with calling(capture=False) as (session, _):
        answer(session, tokens=4)
        assert session.report()["launch_ahead"] == {
            "steps": 0,
            "overruns": 0,
            "failed": 0,
            "off": {"host_function": 2},
        }


def test_the_report_says_whose_function_makes_the_segment_dynamic_and_how_often_it_ran() -> None:
    with calling() as (session, _):
        answer(session, tokens=3)
        (dynamic,) = (
            e
            for e in session.report()["segments"]
            if (e["kind"], e["phase"], e["schedule"]) == ("dynamic", "decode", "default")
        )
        assert (dynamic["runs"], dynamic["reasons"][0]["chain"]) == (2, ["host", "by hand", "steer"])


def test_a_function_that_is_missing_is_named_before_the_request_waits_and_may_be_registered_later() -> None:
    with calling(None) as (session, device):
        with pytest.raises(
            RunError, match=r"a function 'steer', .* functions={'steer': f} .* session\.register\('steer'"
        ):
            session.request()
        assert device.log == []
        session.register("steer", unchanged)
        answer(session)


def test_a_function_registered_again_is_called_from_then_on() -> None:
    with calling() as (session, _):
        first = answer(session, tokens=8)
        session.register("steer", doubled)
        assert answer(session, tokens=8) != first
        session.register("steer", unchanged)
        assert answer(session, tokens=8) == first


@pytest.mark.parametrize(
    ("name", "function", "problem"),
    [
        ("stear", unchanged, r"a function that this plan calls \('steer'\), found 'stear'"),
        ("logits_processor", unchanged, "found 'logits_processor'"),
        ("steer", 3, "expected a function for 'steer', found int"),
    ],
)
def test_what_the_plan_does_not_call_is_not_registered(name: str, function: Any, problem: str) -> None:
    with calling(None) as (session, _), pytest.raises(RunError, match=problem):
        session.register(name, function)
    device = FakeDevice(small_plan(function="steer"))
    with pytest.raises(RunError, match=problem):
        Session(device.plan, device, functions={name: function})


def test_a_plan_that_calls_none_takes_none() -> None:
    device = FakeDevice(small_plan())
    with Session(device.plan, device) as session, pytest.raises(RunError, match=r"calls \(none\), found 'steer'"):
        session.register("steer", unchanged)
    assert function_names(device.plan) == ()


@pytest.mark.parametrize(
    ("gives", "found"),
    [
        (lambda rows: rows[:, 1:], r"ndarray \[3, 7\] of float32"),
        (lambda rows: rows[0], r"ndarray \[8\] of float32"),
        (lambda rows: "rows", r"str \[\] of <U4"),
        (lambda rows: rows.astype(np.complex64), r"ndarray \[3, 8\] of complex64"),
    ],
)
def test_rows_of_another_kind_are_refused_and_the_session_goes_on(gives: Callable[[Rows], Any], found: str) -> None:
    with calling(capture=False) as (session, _):
        expected = answer(session)
        session.register("steer", gives)
        with pytest.raises(RunError, match=rf"expected rows \[3, 8\] of real numbers, .* 'steer', found {found}"):
            answer(session)
        session.register("steer", unchanged)
        assert answer(session) == expected


def test_an_error_in_the_function_reaches_the_caller_and_frees_the_session() -> None:
    def fails(rows: Rows) -> None:
        raise ZeroDivisionError("mine")

    with calling(fails) as (session, _):
        with pytest.raises(ZeroDivisionError, match="mine"):
            answer(session)
        session.register("steer", unchanged)
        answer(session)


# On the CPU, with a compiled network.


def plans(folder: Path, variant: str = "gqa", value: str = BETWEEN, **more: Any) -> tuple[Path, Path]:
    """The plan of a network, and of the same one with a function between its layers."""
    model = copy_of(variant, folder)
    options = {**SMALL, **more}
    plain = compile_model(model, folder / "plain.hjg", **options).path
    changed(model, with_host_function(value))
    return plain, compile_model(model, folder / "function.hjg", **options).path


def answered(plan: Path, ids: list[int] = IDS, tokens: int = 12, **options: Any) -> tuple[list[int], list[Rows]]:
    """Tokens and logits: first plainly, then by graphs, found to be the same."""
    with open_session(plan, device="cpu", **options) as session:
        found: list[tuple[list[int], list[Rows]]] = []
        for _ in range(2):
            with session.request(logits=True) as request:
                made = [request.prefill(ids, {})]
                rows = [request.logits()]
                for _ in range(tokens - 1):
                    made.append(request.decode())
                    rows.append(request.logits())
            captured(session)
            found.append((made, rows))
        assert session.report()["totals"]["promoted"] > 0
        assert session.report()["totals"]["quarantined"] == 0
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    return found[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", ["Gather", "model.layers.0/Add", BETWEEN, "model.layers.1/Add_1"])
def test_a_function_that_changes_nothing_gives_the_logits_and_tokens_of_the_plain_plan(
    value: str, dtype: str, tmp_path: Path
) -> None:
    plain, function = plans(tmp_path, value=value, dtype=dtype)
    expected, found = answered(plain), answered(function, functions={"steer": unchanged})
    assert found[0] == expected[0]
    assert all(np.array_equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


def test_a_function_computes_what_the_same_network_with_it_computes_in_torch(tmp_path: Path) -> None:
    _, function = plans(tmp_path)
    direction = torch.linspace(-1, 1, 64)
    expected = by_torch(tmp_path, IDS, lambda hidden: hidden * 0.5 + direction)
    tokens, logits = answered(function, functions={"steer": lambda rows: rows * 0.5 + direction.numpy()}, tokens=1)
    np.testing.assert_allclose(logits[0], expected.numpy(), rtol=2e-4, atol=2e-4)
    assert tokens == [int(expected.argmax())]
    plainly = by_torch(tmp_path, IDS, lambda hidden: hidden)
    assert (plainly - expected).norm() > 0.1 * plainly.norm()


@torch.no_grad()
def by_torch(folder: Path, ids: list[int], function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """transformers' logits behind the ids, the result of the first layer passed through the function."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def hook(module: Any, given: Any, hidden: Any) -> Any:
        return (function(hidden[0]), *hidden[1:]) if isinstance(hidden, tuple) else function(hidden)

    model.model.layers[0].register_forward_hook(hook)
    return model(torch.tensor([ids])).logits[0, -1]


def test_a_function_that_scales_the_last_rows_scales_nothing_that_a_norm_follows(tmp_path: Path) -> None:
    """By hand: behind the last layer there is a norm, which takes out any scale but for its epsilon."""
    plain, function = plans(tmp_path, value="model.layers.1/Add_1")
    expected, found = answered(plain), answered(function, functions={"steer": lambda rows: rows * 1024.0})
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-3)
    negated = answered(function, functions={"steer": np.negative})
    np.testing.assert_allclose(negated[1][0], -expected[1][0], rtol=1e-5, atol=1e-5)
    assert negated[0][0] == int(expected[1][0].argmin())


def test_a_language_model_takes_functions_by_name(tmp_path: Path) -> None:
    plain, function = plans(tmp_path)
    with LLM(plain) as llm:
        expected = llm.generate(IDS).token_ids
    with LLM(function, functions={"steer": unchanged}) as llm:
        assert llm.generate(IDS).token_ids == expected
    with LLM(function) as llm, pytest.raises(RunError, match=r"functions={'steer': f} to hjgc\.LLM"):
        llm.generate(IDS)


def test_a_wrong_name_is_told_before_weights_are_looked_for(tmp_path: Path) -> None:
    save(tmp_path / "plan.hjg", small_plan(function="steer"), sections={"constants": CONSTANTS})
    with pytest.raises(RunError, match="found 'stear'"):
        open_session(tmp_path / "plan.hjg", functions={"stear": unchanged})
    with pytest.raises(PlanError, match=r"weights\.bin"):
        open_session(tmp_path / "plan.hjg", functions={"steer": unchanged})
