"""Do nodes that go by order or place choose as ONNX Runtime does, equal numbers included?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.function.one_node import check_island, check_native, onnx_itself, some

TIES = np.array([[3, 1, 3, 2], [0, 0, -1, 0], [5, 7, 7, 7]], np.float32)
SYMBOLIC = {0: ("N", "C")}


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("more", [{}, {"axis": -1, "keepdims": 0}, {"axis": 1, "select_last_index": 1}])
@pytest.mark.parametrize("shapes", [{}, SYMBOLIC])
def test_of_equal_numbers_the_first_or_the_last_is_named(op: str, more: Any, shapes: Any) -> None:
    assert check_native(op, [TIES], shapes=shapes, **more) == ["arg_reduce"]


@pytest.mark.parametrize("more", [{}, {"axis": 0}, {"opset": 12, "axis": 0}])
def test_hardmax_marks_the_first_of_the_largest(more: Any) -> None:
    check_native("Hardmax", [TIES], shapes=SYMBOLIC, **more)


@pytest.mark.parametrize("more", [{}, {"largest": 0}, {"axis": 0, "largest": 0}])
def test_top_k_gives_numbers_and_places_in_order(more: Any) -> None:
    inputs = [TIES, np.array([2])]
    shapes = {0: ("N", 4) if "axis" not in more else (3, "C")}
    check_native("TopK", inputs, constants=[1], outputs=("y", "places"), shapes=shapes, **more)


@pytest.mark.parametrize(("constants", "shapes"), [([], {}), ([1], {0: (3, "C")})])
def test_top_k_of_an_unknown_number_or_of_too_few_goes_to_onnx_runtime(constants: list[int], shapes: Any) -> None:
    inputs = [TIES, np.array([3])]
    check_island("TopK", inputs, constants=constants, shapes=shapes, outputs=("y", "places"))


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("diagonal", [None, np.array(-1), np.array(2)])
def test_a_triangle_has_any_diagonal(upper: int, diagonal: Any) -> None:
    inputs = [some(2, 3, 4), diagonal]
    assert check_native("Trilu", inputs, shapes={0: (2, "M", "N")}, upper=upper) == ["triangle"]


@pytest.mark.parametrize("more", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
@pytest.mark.parametrize("constants", [[], [1]])
def test_sums_go_along_an_axis_that_is_known_or_read(more: Any, constants: list[int]) -> None:
    inputs = [some(2, 3, 4), np.array(-2)]
    assert check_native("CumSum", inputs, constants=constants, shapes={0: (2, "N", 4)}, **more) == ["cumulate"]


@pytest.mark.parametrize("more", [{}, {"exclusive": 1, "reverse": 1}])
def test_products_go_along_an_axis(more: Any) -> None:
    check_native("CumProd", [some(2, 3, 4), np.array(1)], oracle=onnx_itself, opset=26, **more)


def test_determinants_of_a_batch() -> None:
    assert check_native("Det", [some(2, 3, 3)], shapes={0: ("N", 3, 3)}) == ["determinant"]
