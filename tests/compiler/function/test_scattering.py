"""Are elements picked and put by their places as ONNX has it, and never outside?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hjgc.plan_format.errors import RunError
from tests.compiler.function.one_node import check_island, check_native, model_of, ours, some

WIDE = {0: ("n", 4), 1: ("n", 2)}
PLACES = np.array([[0, -1], [3, 1], [-4, 2]])
REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.mark.parametrize("shapes", [{}, WIDE])
@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.uint16, np.int64])
def test_elements_are_gathered_along_an_axis(shapes: Any, dtype: type) -> None:
    x = (some(3, 4) * 9).astype(dtype)
    assert check_native("GatherElements", [x, PLACES], shapes=shapes, axis=1) == ["gather_elements"]


@pytest.mark.parametrize("shapes", [{}, {**WIDE, 2: ("n", 2)}])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_elements_are_scattered_along_an_axis(shapes: Any, reduction: str, dtype: type) -> None:
    x, updates = (some(3, 4) * 9).astype(dtype), (some(3, 2) * 9).astype(dtype)
    check_native("ScatterElements", [x, PLACES, updates], shapes=shapes, axis=1, reduction=reduction)


def test_the_scatter_of_old_is_the_same() -> None:
    check_native("Scatter", [some(3, 4), PLACES, some(3, 2)], opset=9, axis=1)


def test_elements_that_meet_are_all_counted() -> None:
    places = np.array([1, 1, -3, 1])
    check_native("ScatterElements", [some(4), places, some(4)], reduction="add")


def test_unsigned_numbers_are_added_up_by_an_island() -> None:
    x = np.arange(3, dtype=np.uint64)
    check_island("ScatterElements", [x, np.array([0]), x[2:]], reduction="add")


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("shapes", [{}, {1: ("k", "m", None)}])
def test_slices_are_gathered_by_the_numbers_of_several_axes(depth: int, shapes: Any) -> None:
    shapes = {i: (*shape[:-1], depth) for i, shape in shapes.items()}
    places = np.arange(-6, 6).reshape(2, 2, 3)[:, :, :depth] % 3 - 1
    assert check_native("GatherND", [some(2, 3, 4), places], shapes=shapes) == ["gather_nd"]


@pytest.mark.parametrize("shapes", [{}, {0: ("b", 3, 4), 1: ("b", 2, 1)}])
def test_slices_are_gathered_in_each_batch(shapes: Any) -> None:
    places = np.array([[[0], [2]], [[-1], [1]]])
    check_native("GatherND", [some(2, 3, 4), places], shapes=shapes, batch_dims=1)


@pytest.mark.parametrize("shapes", [{}, {0: (3, "n"), 2: (4, "n")}])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_slices_are_scattered(shapes: Any, reduction: str) -> None:
    places = np.array([[0], [-1], [1], [0 if reduction != "none" else -3]])
    updates = some(4, 2) if reduction != "none" else np.repeat(some(4, 1), 2, 1)
    places = places if reduction != "none" else places[:3]
    updates = updates if reduction != "none" else updates[:3]
    shapes = {**shapes, 2: (len(updates), "n")} if shapes else {}
    check_native("ScatterND", [some(3, 2), places, updates], shapes=shapes, reduction=reduction)


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
def test_sequences_are_reversed_as_far_as_they_go(time: int, batch: int, dtype: type) -> None:
    x = (some(4, 4, 2) * 9).astype(dtype)
    lengths, shapes = np.array([1, 2, 3, 4]), {0: (4, 4, "c")}
    check_native("ReverseSequence", [x, lengths], shapes=shapes, time_axis=time, batch_axis=batch)


OUTSIDE: list[tuple[str, list[Any]]] = [
    ("GatherElements", [some(3), np.array([3])]),
    ("GatherND", [some(3, 2), np.array([[0, -3]])]),
    ("ScatterElements", [some(3), np.array([-4]), some(1)]),
    ("ScatterND", [some(3), np.array([[7]]), some(1)]),
]


@pytest.mark.parametrize(("op", "inputs"), OUTSIDE)
def test_a_place_outside_is_an_error(op: str, inputs: list[Any]) -> None:
    with pytest.raises(RunError, match="expected numbers of"):
        ours(model_of(op, inputs), inputs)
