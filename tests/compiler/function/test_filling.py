"""Are tensors that are made of sizes and places alone launches of ours, at any size?"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.compiler.function.one_node import check_island, check_native, model_of, onnx_itself, ours, some

ROWS = {0: ("n", 3)}


@pytest.mark.parametrize("shapes", [{}, ROWS])
@pytest.mark.parametrize("part", [{}, {"start": 1}, {"start": -1}, {"end": -1}, {"start": 2, "end": 1}, {"end": 9}])
def test_a_shape_that_is_asked_for_is_one_launch(shapes: Any, part: dict[str, int]) -> None:
    assert check_native("Shape", [some(2, 3)], shapes=shapes, **part) == ["shape_of"]


@pytest.mark.parametrize("shapes", [{}, ROWS])
def test_a_size_is_the_product_of_a_shape(shapes: Any) -> None:
    assert check_native("Size", [some(2, 3)], shapes=shapes) == ["shape_of", "reduce"]


@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(-(2**60)), np.bool_(True), np.uint8(255), np.float16(2)])
def test_a_shape_is_filled_with_a_number_of_any_type(value: Any) -> None:
    tensor = onnx.numpy_helper.from_array(np.array([value]))
    assert check_native("ConstantOfShape", [np.array([2, 3])], constants=[0], value=tensor) == ["fill"]


def test_a_shape_that_is_computed_at_run_time_is_filled_by_an_island() -> None:
    check_island("ConstantOfShape", [np.array([2, 3])])


RANGES = [
    (0, 7, 2, np.int64),
    (5, -3, -3, np.int32),
    (3, 3, 1, np.int64),
    (0.5, 3, 0.7, np.float32),
    (4, 1, 1, np.float32),
]


@pytest.mark.parametrize(("start", "limit", "step", "dtype"), RANGES)
def test_a_range_between_numbers(start: float, limit: float, step: float, dtype: type) -> None:
    check_native("Range", [np.array(number, dtype) for number in (start, limit, step)], constants=[0, 1, 2])


def test_a_range_to_a_size_has_as_many_numbers() -> None:
    nodes = [
        onnx.helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        onnx.helper.make_node("Squeeze", ["shape"], ["limit"]),
        onnx.helper.make_node("Range", ["one", "limit", "two"], ["y"]),
    ]
    numbers = [onnx.numpy_helper.from_array(np.array(i), name) for i, name in ((1, "one"), (2, "two"))]
    x = onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["n"])
    nodes[0].input[0] = "x0"
    graph = onnx.helper.make_graph(nodes, "range", [x], [onnx.helper.make_empty_tensor_value_info("y")], numbers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    for n in (1, 2, 7):
        launches, (found,) = ours(model, [some(n)])
        assert launches == ["iota"]
        np.testing.assert_array_equal(found, np.arange(1, n, 2))


@pytest.mark.parametrize("shapes", [{}, ROWS])
@pytest.mark.parametrize("shift", [-1, 0, 2])
def test_an_eye_has_ones_on_one_diagonal(shapes: Any, shift: int) -> None:
    check_native("EyeLike", [some(2, 3)], shapes=shapes, k=shift, dtype=onnx.TensorProto.INT32)


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("depth", [np.array(4), np.array([4.0], np.float32)])
def test_one_hot_of_numbers_inside_behind_and_outside(axis: int, depth: Any) -> None:
    indices = np.array([[0, -1, 7], [3, -4, -5]])
    values = np.array([2, 5], np.float32)
    check_native("OneHot", [indices, depth, values], constants=[1], shapes={0: ("n", 3)}, axis=axis)


@pytest.mark.parametrize("shapes", [{}, ROWS])
@pytest.mark.parametrize("repeats", [(2, 1), (1, 3), (2, 2), (0, 1), (1, 1)])
def test_a_tile_is_one_launch(shapes: Any, repeats: tuple[int, int]) -> None:
    assert check_native("Tile", [some(2, 3), np.array(repeats)], constants=[1], shapes=shapes) == ["expand"]


def test_repeats_that_are_computed_at_run_time_are_an_island() -> None:
    check_island("Tile", [some(2, 3), np.array([2, 1])])


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_bits_are_read_as_another_type(dtype: type) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    check_native(
        "BitCast", [some(2, 3)], shapes=ROWS, oracle=lambda _, given: [given[0].view(dtype)], opset=26, to=kind
    )


@pytest.mark.parametrize("window", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_a_window_of_a_signal(window: str, periodic: int) -> None:
    launches = check_native(window, [np.array(9)], constants=[0], periodic=periodic, oracle=onnx_itself)
    assert launches == ["iota", "elementwise"]


def test_a_window_of_no_length_to_speak_of_is_an_island() -> None:
    model = model_of("HannWindow", [np.array(1)], constants=[0], periodic=0)
    launches, _ = ours(model, [None])
    assert launches == ["island"]
