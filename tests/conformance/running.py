"""What becomes of one case of ONNX's backend suite: native, with an island, or failed?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.runner import Runner

from hjgc.tools.onnx_backend import Backend
from tests.conformance.cases import data_sets, model_of


class Result(StrEnum):
    """The best first."""

    NATIVE = "native"
    ISLAND = "island"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """`reason`: of a failure."""

    result: Result
    reason: str = ""


def run_case(case: TestCase) -> Outcome:
    """Compiles and calls the case's model, and compares as ONNX does."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch and numpy, about numbers that are wanted
            return Outcome(_passed(case))
    except Exception as error:  # whatever a case meets is what became of it
        return Outcome(Result.FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")


def _passed(case: TestCase) -> Result:
    model = model_of(case)
    prepared = Backend.prepare(model)
    try:
        for given, wanted in data_sets(case, model):
            check_outputs(case, wanted, prepared.run(given))
        return Result.ISLAND if prepared.plan.islands else Result.NATIVE
    finally:
        prepared.close()


def check_outputs(case: TestCase, wanted: Sequence[Any], found: Sequence[Any]) -> None:
    """Raises AssertionError where they differ by more than the case allows."""
    assert len(found) == len(wanted), f"expected {len(wanted)} outputs, found {len(found)}"
    for one, other in zip(wanted, found, strict=True):
        _check(case, one, other)


def _check(case: TestCase, wanted: Any, found: Any) -> None:
    """ONNX's own comparison takes the items of a sequence for sequences again, and falls over scalars."""
    if wanted is None or found is None:
        assert wanted is found, f"expected {wanted}, found {found}"
    elif isinstance(wanted, list | tuple):
        assert isinstance(found, list | tuple), f"expected a sequence, found {type(found).__name__}"
        check_outputs(case, wanted, found)
    else:
        Runner.assert_similar_outputs([wanted], [found], case.rtol, case.atol, case.model_dir)
