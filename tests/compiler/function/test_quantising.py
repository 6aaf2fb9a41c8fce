"""Are bytes made, read and multiplied as ONNX Runtime does, to the last bit?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.function.one_node import Array, check_island, check_native, some

X = 300 * some(3, 4, 5)


def scales(*shape: int) -> Array:
    return np.abs(some(*shape)) + np.float32(0.1)


def some_bytes(dtype: type, *shape: int) -> Array:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.random.default_rng(7).integers(low, high, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize(("shape", "axis"), [((), 1), ((1,), 1), ((4,), 1), ((5,), -1)])
def test_numbers_become_bytes_and_bytes_numbers(dtype: type, shape: tuple[int, ...], axis: int) -> None:
    scale, zero = scales(*shape), some_bytes(dtype, *shape)
    shapes = {0: ("N", 4, 5)}
    assert check_native("QuantizeLinear", [X, scale, zero], shapes=shapes, axis=axis, tolerance=0) == ["elementwise"]
    inputs = [some_bytes(dtype, 3, 4, 5), scale, zero]
    assert check_native("DequantizeLinear", inputs, shapes=shapes, axis=axis, tolerance=0) == ["elementwise"]


def test_halves_are_rounded_to_even_and_ends_are_kept() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9, np.inf, -np.inf], np.float32)
    check_native("QuantizeLinear", [x, np.float32(1), np.uint8(1)], tolerance=0)


@pytest.mark.parametrize("zero", [None, some_bytes(np.uint8, 3, 2, 5)])
def test_blocks_have_scales_of_their_own(zero: Array | None) -> None:
    inputs = [X, scales(3, 2, 5), zero]
    more: Any = {"axis": 1, "block_size": 2, "tolerance": 0}
    check_native("QuantizeLinear", inputs, shapes={0: (3, 4, 5)}, **more)
    check_native("DequantizeLinear", [some_bytes(np.uint8, 3, 4, 5), *inputs[1:]], **more)


def test_int32_without_a_zero_point() -> None:
    inputs = [some_bytes(np.int32, 3, 4), np.float32(0.01)]
    check_native("DequantizeLinear", inputs, tolerance=0)


@pytest.mark.parametrize("x", [X, np.abs(X), np.zeros((3, 4, 5), np.float32)])
def test_a_scale_is_found_for_all_numbers(x: Array) -> None:
    check_native("DynamicQuantizeLinear", [x], outputs=("y", "scale", "zero"), shapes={0: ("N", 4, "M")}, tolerance=0)


@pytest.mark.parametrize("zeros", [(None, None), ((), ()), ((1,), (6,))])
@pytest.mark.parametrize(("a", "b"), [(np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8)])
def test_a_product_of_bytes_is_exact(a: type, b: type, zeros: Any) -> None:
    points = [None if shape is None else some_bytes(dtype, *shape) for dtype, shape in zip((a, b), zeros, strict=True)]
    inputs = [some_bytes(a, 2, 3, 700), some_bytes(b, 700, 6), *points]
    launches = check_native("MatMulInteger", inputs, oracle=exact, shapes={0: ("N", "M", 700)}, tolerance=0)
    assert launches == ["integer_matmul"]


def test_rows_have_zero_points_of_their_own() -> None:
    inputs = [some_bytes(np.uint8, 3, 50), some_bytes(np.uint8, 50, 6), some_bytes(np.uint8, 3), None]
    check_native("MatMulInteger", inputs, oracle=exact, tolerance=0)


def exact(model: Any, inputs: list[Array | None]) -> list[Array]:
    """In numpy: ONNX Runtime's sums of bytes with and without signs run over on some processors."""
    a, b, rows, columns = (np.zeros(1, np.int32) if x is None else np.asarray(x, np.int32) for x in inputs)
    return [(a - rows.reshape(-1, 1)) @ (b - columns)]


@pytest.mark.parametrize("columns", [1, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_product_is_brought_to_the_scale_of_its_result(dtype: type, columns: int) -> None:
    a, b = some_bytes(dtype, 3, 50), some_bytes(dtype, 50, 6)
    zero = np.zeros(columns, dtype) + dtype(3)
    inputs = [a, np.float32(0.02), dtype(5), b, scales(columns), zero, np.float32(3.1), dtype(7)]
    launches = check_native("QLinearMatMul", inputs, shapes={0: ("M", 50)}, constants=range(1, 8), tolerance=0)
    assert launches == ["integer_matmul", "elementwise"]


def test_other_types_go_to_onnx_runtime() -> None:
    inputs = [some_bytes(np.int32, 3, 4), np.float32(0.5), np.int32(0)]
    check_island("DequantizeLinear", inputs)
