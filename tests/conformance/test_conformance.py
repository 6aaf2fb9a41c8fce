"""Does hjgc compute what ONNX's own backend suite expects, natively but for what `not_native.txt` lists?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.conformance import expected
from tests.conformance.cases import all_cases
from tests.conformance.conftest import RAN
from tests.conformance.expected import Known
from tests.conformance.running import Outcome, Result, run_case

PARTS = 36
WRONG = Outcome(Result.FAILED, "AssertionError: 1 is not 2")
NO_LOCALE = Outcome(Result.FAILED, f"CompileError: {expected.MACHINE_LACKS} with name:en_US.UTF-8")
KNOWN = Known("", {"test_island": Result.ISLAND, "test_failed": Result.FAILED})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_case_is_better_or_worse_than_its_line(part: int, pytestconfig: pytest.Config) -> None:
    other = expected.other_versions()
    if other:
        pytest.skip(f"{other}; HJGC_ACCEPT=grow makes the list anew")
    cases = all_cases()
    chosen = cases[len(cases) * part // PARTS : len(cases) * (part + 1) // PARTS]
    outcomes = {case.name: run_case(case) for case in chosen}
    pytestconfig.stash[RAN] += [(case.kind, outcomes[case.name].result) for case in chosen]
    expected.accept(outcomes)
    assert list(expected.complaints(expected.read(), outcomes)) == []


def test_every_line_is_of_a_case_that_there_is() -> None:
    if expected.other_versions():
        pytest.skip("see the parts")
    expected.accept_names(case.name for case in all_cases())
    assert expected.stale(expected.read(), (case.name for case in all_cases())) == []


@pytest.mark.parametrize(
    ("name", "outcome", "words"),
    [
        ("test_native", WRONG, "test_native was native, is failed: AssertionError: 1 is not 2"),
        ("test_island", WRONG, "test_island was island, is failed: AssertionError: 1 is not 2"),
        ("test_native", Outcome(Result.ISLAND), "test_native was native, is island: see hjgc explain"),
        ("test_island", Outcome(Result.NATIVE), "test_island was island, is native: HJGC_ACCEPT=1 renews not_nat"),
        ("test_failed", Outcome(Result.ISLAND), "test_failed was failed, is island: HJGC_ACCEPT=1 renews not_nat"),
    ],
)
def test_a_case_unlike_its_line_is_complained_about(name: str, outcome: Outcome, words: str) -> None:
    (line,) = expected.complaints(KNOWN, {name: outcome})
    assert line.startswith(words)


@pytest.mark.parametrize("outcome", [Outcome(Result.ISLAND), NO_LOCALE])
def test_a_case_like_its_line_or_on_a_machine_without_its_locale_is_not(outcome: Outcome) -> None:
    assert list(expected.complaints(KNOWN, {"test_island": outcome})) == []
    assert expected.renewed(KNOWN, {"test_island": outcome}, grow=True) == KNOWN.results


def test_the_list_only_grows_when_told_to() -> None:
    outcomes = {"test_island": WRONG, "test_native": Outcome(Result.ISLAND), "test_failed": Outcome(Result.NATIVE)}
    shrunk = expected.renewed(KNOWN, outcomes, grow=False)
    assert shrunk == {"test_island": Result.ISLAND, "test_failed": Result.NATIVE}
    grown = expected.renewed(KNOWN, outcomes, grow=True)
    assert grown == {"test_island": Result.FAILED, "test_native": Result.ISLAND, "test_failed": Result.NATIVE}
