"""Are norms few launches of ours that compute what they say, at any size?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compiler.function.for_gpus import checked
from tests.compiler.function.one_node import Array, check_island, check_native, model_of, onnx_itself, some

IMAGES = {0: ("N", 6, "H", "W")}
X = some(2, 6, 3, 4)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("outputs", [("y",), ("y", "mean", "deviation")])
def test_layer_norm_gives_its_moments_where_they_are_wanted(axis: int, outputs: tuple[str, ...]) -> None:
    shape = X.shape[axis:]
    inputs = [X, some(*shape), some(*shape)]
    assert check_native("LayerNormalization", inputs, outputs=outputs, shapes={0: ("N", 6, 3, 4)}, axis=axis) == [
        "layer_norm"
    ]


@pytest.mark.parametrize(
    ("op", "more", "launches"),
    [
        ("InstanceNormalization", {}, ["layer_norm"]),
        ("GroupNormalization", {"num_groups": 3}, ["layer_norm"]),
    ],
)
@pytest.mark.parametrize("shapes", [{}, IMAGES])
def test_norms_of_channels_are_one_launch(op: str, more: Any, launches: list[str], shapes: Any) -> None:
    assert check_native(op, [X, some(6), some(6) + 1], shapes=shapes, **more) == launches


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(("op", "more"), [("InstanceNormalization", {}), ("GroupNormalization", {"num_groups": 3})])
def test_for_a_gpu_norms_of_channels_are_scaled_behind(op: str, more: Any, tmp_path: Path) -> None:
    inputs = [X, some(6), some(6) + 1]
    model = model_of(op, inputs, opset=21, constants=(1, 2), **more)
    assert checked(model, {"x0": X}, tmp_path)[:2] == ["layer_norm", "elementwise"]


def test_until_opset_20_a_gain_holds_for_a_group() -> None:
    def by_groups(model: Any, inputs: list[Array]) -> list[Array]:
        x, gain, bias = inputs
        rows = x.reshape(2, 3, -1).astype(np.float64)
        normal = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
        return [(normal * gain[:, None] + bias[:, None]).reshape(x.shape).astype(x.dtype)]

    inputs = [X, some(3), some(3) + 1]
    check_native("GroupNormalization", inputs, oracle=by_groups, opset=18, num_groups=3, shapes={0: ("N", 6, 3, "W")})


def test_batch_norm_is_one_expression() -> None:
    inputs = [X, some(6), some(6) + 1, some(6), np.abs(some(6))]
    assert check_native("BatchNormalization", inputs, shapes=IMAGES, epsilon=1e-3) == ["elementwise"]


@pytest.mark.parametrize(
    ("op", "more"),
    [
        ("MeanVarianceNormalization", {}),
        ("LpNormalization", {"axis": 1, "p": 1}),
        ("LpNormalization", {"axis": -1, "p": 2}),
        ("LRN", {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}),
        ("LRN", {"size": 4}),
    ],
)
@pytest.mark.parametrize("shapes", [{}, IMAGES])
def test_norms_by_squares(op: str, more: Any, shapes: Any) -> None:
    oracle: Any = {"LRN": neighbours, "MeanVarianceNormalization": moments}
    more = more if op not in oracle else {**more, "oracle": oracle[op](more)}
    check_native(op, [X], shapes=shapes, **more)


def neighbours(more: Any) -> Any:
    """In numpy: ONNX Runtime has no even sizes."""

    def run(model: Any, inputs: list[Array]) -> list[Array]:
        x, size = inputs[0], more["size"]
        squares = np.stack(
            [(x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1] ** 2).sum(1) for c in range(x.shape[1])],
            1,
        )
        bias, alpha, beta = more.get("bias", 1.0), more.get("alpha", 1e-4), more.get("beta", 0.75)
        return [(x / (bias + alpha / size * squares) ** beta).astype(x.dtype)]

    return run


def moments(more: Any) -> Any:
    def run(model: Any, inputs: list[Array]) -> list[Array]:
        x, axes = inputs[0].astype(np.float64), (0, 2, 3)
        found = (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9)
        return [found.astype(inputs[0].dtype)]

    return run


def test_a_row_of_zeros_has_no_length_and_stays() -> None:
    check_native("LpNormalization", [np.zeros((2, 3), np.float32)], oracle=onnx_itself, opset=22)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_squares_of_halves_do_not_run_over(dtype: type) -> None:
    def wide(model: Any, inputs: list[Array]) -> list[Array]:
        x = inputs[0].astype(np.float64)
        return [(x / np.sqrt((x * x).sum(-1, keepdims=True))).astype(dtype)]

    check_native("LpNormalization", [np.full((2, 3), 4e4, dtype)], oracle=wide, opset=22, tolerance=1e-3)


def test_a_batch_norm_that_trains_goes_to_onnx_runtime() -> None:
    inputs = [X, some(6), some(6) + 1, some(6), np.abs(some(6))]
    check_island("BatchNormalization", inputs, outputs=("y", "mean", "variance"), opset=15, training_mode=1)
