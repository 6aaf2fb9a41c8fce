"""Is what a function gives compared as it should be, type by type?"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hjgc.tools.functions.comparing import Place, compare

FLOATS = np.array([[4.0, 2.0], [1.0, 0.0]], np.float32)


def one(found: Any, expected: Any, **options: Any) -> Any:
    (compared,) = compare({"y": found}, {"y": expected}, **options)
    return compared


def test_a_difference_is_a_part_of_the_largest_magnitude() -> None:
    found = FLOATS.copy()
    found[1] += [0.004, 0.002]
    compared = one(found, FLOATS)
    assert (compared.differ, compared.magnitude, compared.tolerance) == (2, 4.0, 1e-4)
    assert compared.relative == pytest.approx(1e-3, rel=1e-3)
    assert compared.first == Place((1, 0), "1.004", "1.0")
    assert one(found, FLOATS, tolerance=2e-3).equal
    assert one(found, FLOATS, least=2e-2).equal


def test_of_zeros_the_difference_itself_counts() -> None:
    zeros = np.zeros(3, np.float32)
    assert one(zeros + np.float32(5e-5), zeros).equal
    assert one(zeros + np.float32(5e-4), zeros).differ == 3


@pytest.mark.parametrize(
    ("found", "expected", "differ"),
    [
        ([np.nan, np.inf, 1], [np.nan, np.inf, 1], 0),
        ([0, np.inf, 1], [np.nan, np.inf, 1], 1),
        ([0, -np.inf, 1], [0, np.inf, 1], 1),
        ([0, 0, np.nan], [0, 0, 1], 1),
    ],
)
def test_what_is_no_number_must_be_the_same(found: list[float], expected: list[float], differ: int) -> None:
    assert one(np.array(found, np.float32), np.array(expected, np.float32)).differ == differ


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, str, ml_dtypes.int4])
def test_what_is_not_rounded_must_be_equal(dtype: Any) -> None:
    expected = np.array([0, 1, 1]).astype(dtype)
    assert one(expected.copy(), expected).equal
    compared = one(expected[::-1].copy(), expected, tolerance=9.0)
    assert (compared.differ, compared.tolerance, compared.error) == (2, 0.0, 0.0)
    assert compared.first.index == (0,)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(np.float64, 1e-7), (np.float16, 2e-2), (ml_dtypes.bfloat16, 1e-1), (np.complex64, 1e-4)]
)
def test_a_tolerance_is_by_type(dtype: Any, limit: float) -> None:
    assert one(np.ones(1, dtype), np.ones(1, dtype)).tolerance == limit


@pytest.mark.parametrize(
    ("found", "expected", "problem"),
    [
        (FLOATS[0], FLOATS, "expected float32 [2, 2], found float32 [2]"),
        (FLOATS.astype(np.float64), FLOATS, "expected float32 [2, 2], found float64 [2, 2]"),
        (None, FLOATS, "expected float32 [2, 2], found nothing"),
        ([FLOATS], [FLOATS, FLOATS], "expected a sequence of 2, found a sequence of 1"),
        (np.array(["a"]), np.array(["a", "b"]), "expected string [2], found string [1]"),
    ],
)
def test_another_type_or_shape_is_a_problem(found: Any, expected: Any, problem: str) -> None:
    compared = one(found, expected)
    assert (compared.problem, compared.equal) == (problem, False)


def test_items_of_a_sequence_are_compared_one_by_one() -> None:
    compared = compare({"y": [FLOATS, FLOATS]}, {"y": [FLOATS, FLOATS + 1]})
    assert [(part.name, part.equal) for part in compared] == [("y.0", True), ("y.1", False)]
    assert one(None, None).equal
