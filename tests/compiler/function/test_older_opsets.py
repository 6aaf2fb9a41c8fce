"""Do nodes of opsets that ONNX Runtime has no kernels for compute what those opsets say?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hjgc import CompileError
from tests.compiler.function.one_node import Array, check_island, check_native, model_of, ours, some

SYMBOLIC = {0: ("N", 3, "W")}
X = some(3, 3, 3)


def numpys(function: Callable[..., Array]) -> Callable[[Any, Sequence[Array | None]], list[Array]]:
    return lambda model, inputs: [function(*inputs)]


@pytest.mark.parametrize(
    ("second", "more", "shape"),
    [
        (some(3), {}, (3,)),
        (some(3), {"axis": 0}, (3, 1, 1)),
        (some(3), {"axis": 1}, (3, 1)),
        (some(3), {"axis": -1}, (3,)),
        (some(3, 3), {"axis": 0}, (3, 3, 1)),
        (some(1), {}, (1,)),
        (np.float32(2), {}, ()),
    ],
)
@pytest.mark.parametrize(("op", "function"), [("Add", np.add), ("Div", np.divide), ("Pow", np.power)])
def test_until_opset_6_an_axis_says_where_the_second_operand_stands(
    op: str, function: Any, second: Array, more: Any, shape: tuple[int, ...]
) -> None:
    first, second = abs(X), abs(second)
    oracle = numpys(lambda x, y: function(x, y.reshape(shape)))
    assert check_native(op, [first, second], oracle=oracle, opset=6, broadcast=1, **more) == ["elementwise"]


def test_axes_behind_those_of_the_first_are_refused() -> None:
    model = model_of("Add", [X, some(3, 3)], opset=6, broadcast=1, axis=2)
    with pytest.raises(CompileError, match="expected nodes that hjgc or ONNX Runtime computes"):
        ours(model, [X, some(3, 3)])


@pytest.mark.parametrize(("slope", "shape"), [(some(3), (3, 1)), (some(1), (1,))])
def test_until_opset_6_a_slope_is_that_of_a_channel(slope: Array, shape: tuple[int, ...]) -> None:
    oracle = numpys(lambda x, y: np.where(x < 0, x * y.reshape(shape), x))
    check_native("PRelu", [X, slope], oracle=oracle, opset=6, shapes=SYMBOLIC)


def normal(x: Array, gain: Array, bias: Array, mean: Array, variance: Array) -> Array:
    gain, bias, mean, variance = (each.reshape(3, 1) for each in (gain, bias, mean, variance))
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + bias


@pytest.mark.parametrize(("opset", "more"), [(6, {"is_test": 1}), (7, {}), (8, {"spatial": 1})])
def test_until_opset_8_moments_that_are_given_normalise(opset: int, more: Any) -> None:
    inputs = [X, some(3), some(3) + 1, some(3) - 1, abs(some(3))]
    check_native("BatchNormalization", inputs, oracle=numpys(normal), opset=opset, shapes=SYMBOLIC, **more)


def test_what_trains_is_refused() -> None:
    inputs = [X, some(3), some(3), some(3), abs(some(3))]
    with pytest.raises(CompileError, match="expected nodes that hjgc or ONNX Runtime computes"):
        ours(model_of("BatchNormalization", inputs, opset=6), inputs)


def test_moments_for_each_place_go_to_onnx_runtime() -> None:
    inputs = [X, some(3, 3), some(3, 3), some(3, 3), abs(some(3, 3))]
    check_island("BatchNormalization", inputs, opset=8, spatial=0)
