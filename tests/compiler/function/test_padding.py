"""Do tensors grow and shrink at their ends as ONNX has it?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.function.one_node import Array, check_island, check_native, some

ROWS = {0: ("n", 4)}
CROP: list[Array | None] = [some(5, 4), np.array([-1, 1, 0, -2])]


@pytest.mark.parametrize("shapes", [{}, ROWS])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.uint32])
def test_pads_by_mode(shapes: Any, mode: str, dtype: type) -> None:
    x = (some(5, 4) * 3).astype(dtype)
    assert check_native("Pad", [x, np.array([1, 0, 2, 3])], constants=[1], shapes=shapes, mode=mode) == ["pad"]


def test_pads_of_some_axes_with_a_number_that_is_given() -> None:
    inputs = [some(5, 4), np.array([1, 2]), np.array(7, np.float32), np.array([-1])]
    check_native("Pad", inputs, constants=[1, 3], shapes=ROWS)


def test_pads_under_0_crop() -> None:
    check_native("Pad", CROP, constants=[1])


def test_a_repetition_that_crops_is_an_island() -> None:
    check_island("Pad", CROP, constants=[1], mode="edge")


def test_pads_that_are_computed_at_run_time_are_an_island() -> None:
    check_island("Pad", [some(5, 4), np.array([1, 0, 2, 3])])


@pytest.mark.parametrize("wanted", [(3, 6), (8, 3), (5, 4), (4, 9)])
def test_the_middle_is_kept(wanted: tuple[int, int]) -> None:
    check_native(
        "CenterCropPad", [some(5, 2, 4), np.array(wanted)], constants=[1], shapes={0: (5, "n", 4)}, axes=[0, -1]
    )


def test_a_middle_that_depends_on_a_size_is_an_island() -> None:
    check_island("CenterCropPad", [some(5, 4), np.array([3, 4])], constants=[1], shapes=ROWS)
