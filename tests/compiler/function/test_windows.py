"""Do convolutions and pools compute what ONNX Runtime does, at any size?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjgc.plan_format.errors import RunError
from tests.compiler.function.for_gpus import checked
from tests.compiler.function.one_node import check_island, check_native, model_of, ours, some

BATCH = {0: ("n", 4, 7, 6)}
IMAGE = {0: ("n", 4, "h", "w")}
CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"pads": [1, 0, 2, 1], "strides": [2, 1]},
    {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID", "strides": [1, 3]},
]


@pytest.mark.parametrize("shapes", [{}, BATCH])
@pytest.mark.parametrize("attributes", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(shapes: Any, attributes: dict[str, Any], groups: int) -> None:
    inputs = [some(2, 4, 7, 6), some(6, 4 // groups, 3, 2), some(6)]
    launches = check_native("Conv", inputs, constants=[1, 2], shapes=shapes, group=groups, **attributes)
    assert launches == ["conv"]


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1], "strides": [2, 1]}, {"auto_pad": "SAME_UPPER"}])
def test_convolutions_of_images_of_any_size(attributes: dict[str, Any]) -> None:
    check_native("Conv", [some(2, 4, 7, 6), some(6, 4, 3, 3)], shapes=IMAGE, **attributes)


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_over_other_numbers_of_axes(axes: int) -> None:
    check_native("Conv", [some(2, 2, *[5] * axes), some(3, 2, *[2] * axes)], strides=[2] * axes)
    check_native("ConvTranspose", [some(2, 2, *[5] * axes), some(2, 3, *[2] * axes)], strides=[2] * axes)


def test_half_floats_are_added_up_in_float32() -> None:
    check_native("Conv", [some(1, 64, 6, dtype=np.float16), some(2, 64, 3, dtype=np.float16)], tolerance=2e-3)


def test_pads_that_depend_on_a_size_are_an_island() -> None:
    inputs = [some(2, 4, 7, 6), some(6, 4, 3, 3)]
    check_island("Conv", inputs, shapes=IMAGE, auto_pad="SAME_UPPER", strides=[2, 2])


def test_a_result_that_may_be_less_than_nothing_is_an_island() -> None:
    check_island("Conv", [some(2, 4, 7, 6), some(6, 4, 3, 3)], shapes=IMAGE)


def test_a_window_that_does_not_fit_is_an_error() -> None:
    model = model_of("Conv", [some(1, 1, 5), some(1, 1, 3)], shapes={0: (1, 1, "w")}, pads=[1, 0])
    with pytest.raises(RunError, match="to fit on 2 elements"):
        ours(model, [some(1, 1, 1), some(1, 1, 3)])


TRANSPOSED: list[dict[str, Any]] = [
    {"strides": [2, 3], "pads": [1, 0, 0, 1]},
    {"strides": [2, 2], "output_padding": [1, 1], "dilations": [1, 2]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"strides": [3, 2], "output_shape": [21, 13]},
    {"strides": [3, 2], "output_shape": [23, 12]},
]


@pytest.mark.parametrize("shapes", [{}, BATCH])
@pytest.mark.parametrize("attributes", TRANSPOSED)
def test_transposed_convolutions(shapes: Any, attributes: dict[str, Any]) -> None:
    inputs = [some(2, 4, 7, 6), some(4, 3, 3, 3), some(6)]
    check_native("ConvTranspose", inputs, constants=[1, 2], shapes=shapes, group=2, **attributes)


def test_a_transposed_convolution_of_images_of_any_size() -> None:
    check_native("ConvTranspose", [some(2, 4, 7, 6), some(4, 3, 3, 3)], shapes=IMAGE, strides=[2, 1])


POOLS: list[dict[str, Any]] = [
    {},
    {"strides": [2, 3], "pads": [1, 0, 1, 1]},
    {"strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 0, 0]},
    {"strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [1, 2], "auto_pad": "SAME_LOWER"},
    {"dilations": [2, 2]},
]
KINDS = [("MaxPool", {}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1}), ("LpPool", {"p": 3})]


@pytest.mark.parametrize(("op", "kind"), KINDS)
@pytest.mark.parametrize("attributes", POOLS)
def test_pools(op: str, kind: dict[str, int], attributes: dict[str, Any]) -> None:
    assert check_native(op, [some(2, 4, 7, 6)], shapes=BATCH, kernel_shape=[3, 2], **kind, **attributes) == ["pool"]


@pytest.mark.parametrize(("op", "kind"), KINDS)
@pytest.mark.parametrize("axes", [1, 3])
def test_pools_over_other_numbers_of_axes(op: str, kind: dict[str, int], axes: int) -> None:
    check_native(op, [some(2, 2, *[6] * axes)], kernel_shape=[3] * axes, pads=[1] * 2 * axes, **kind)


def test_a_pool_of_images_of_any_size() -> None:
    check_native("MaxPool", [some(2, 4, 7, 6)], shapes=IMAGE, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_the_greatest_of_small_numbers(dtype: type) -> None:
    x = (some(2, 4, 7, 6) * 40).astype(dtype)
    check_native("MaxPool", [x], kernel_shape=[3, 3], pads=[1] * 4)


def test_the_places_of_maxima_are_an_island() -> None:
    check_island("MaxPool", [some(1, 1, 4, 4)], outputs=("y", "places"), kernel_shape=[2, 2])


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_pools_over_everything_are_reductions(op: str) -> None:
    assert check_native(op, [some(2, 4, 7, 6)], shapes=IMAGE, opset=21) == ["reduce"]


COLUMNS: list[tuple[int, dict[str, Any]]] = [
    (20, {}), (15, {"strides": [2, 1], "pads": [1, 0, 0, 0]}), (10, {"dilations": [3, 1]}),
]  # fmt: skip


@pytest.mark.parametrize(("count", "attributes"), COLUMNS)
def test_blocks_are_added_up_to_an_image(count: int, attributes: dict[str, Any]) -> None:
    inputs = [some(2, 12, count), np.array([5, 6]), np.array([2, 2])]
    check_native("Col2Im", inputs, constants=[1, 2], shapes={0: ("n", 12, count)}, **attributes)


def test_maxima_go_back_to_their_places() -> None:
    x, places = some(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]])
    launches = check_native("MaxUnpool", [x, places], kernel_shape=[2, 2], strides=[2, 2], opset=22)
    assert launches == ["fill", "scatter_elements"]


def for_a_gpu(
    op: str, inputs: list[Any], folder: Path, shapes: Any = None, *, least: int = 3, **attributes: Any
) -> list[str]:
    """The launches for one, without copies into results, once they give ONNX Runtime's numbers."""
    model = model_of(op, inputs, shapes=shapes, constants=range(1, len(inputs)), opset=20, **attributes)
    sizes = {
        axis: (1 if axis == "n" else least, 64)
        for shape in (shapes or {}).values()
        for axis in shape
        if isinstance(axis, str)
    }
    ops = checked(model, {"x0": inputs[0]}, folder, sizes=sizes or None)
    return ops[:-1] if ops[-1] == "elementwise" else ops


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("shapes", [None, BATCH])
@pytest.mark.parametrize("attributes", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_for_a_gpu_convolutions_are_products(
    attributes: dict[str, Any], groups: int, shapes: Any, tmp_path: Path
) -> None:
    inputs = [some(2, 4, 7, 6), some(6, 4 // groups, 3, 2), some(6)]
    padded = "pads" in attributes or "SAME" in attributes.get("auto_pad", "")
    found = for_a_gpu("Conv", inputs, tmp_path, shapes, group=groups, **attributes)
    launches = ["unfold", "matmul"] if groups == 1 else ["unfold", "transpose", "matmul", "transpose"]
    assert found == [*(["pad"] if padded else []), *launches]


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_for_a_gpu_over_any_number_of_axes(axes: int, tmp_path: Path) -> None:
    filters = some(3, 2, *[2] * axes)
    assert for_a_gpu("Conv", [some(2, 2, *[5] * axes), filters], tmp_path, strides=[2] * axes)[0] == "unfold"
    assert for_a_gpu("MaxPool", [some(2, 2, *[5] * axes)], tmp_path, kernel_shape=[2] * axes)[0] == "unfold"


@pytest.mark.usefixtures("nothing_built")
def test_for_a_gpu_filters_of_one_channel_each_and_images_of_any_size(tmp_path: Path) -> None:
    inputs = [some(1, 4, 7, 6), some(4, 1, 3, 3), some(4)]
    found = for_a_gpu("Conv", inputs, tmp_path, {0: (1, 4, "h", "w")}, group=4, pads=[1] * 4)
    assert found == ["pad", "unfold", "matmul"]


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(("op", "more"), [("Conv", {}), ("MaxPool", {"kernel_shape": [3, 3]})])
def test_for_a_gpu_images_of_any_size_without_pads(op: str, more: dict[str, Any], tmp_path: Path) -> None:
    """How many windows there are, multiplied out, has wider bounds than along each axis."""
    inputs = [some(1, 3, 17, 18), some(4, 3, 3, 3)][: 2 if op == "Conv" else 1]
    assert "unfold" in for_a_gpu(op, inputs, tmp_path, {0: (1, 3, "h", "w")}, least=16, **more)


@pytest.mark.usefixtures("nothing_built")
def test_for_a_gpu_sizes_of_too_many_parts_are_an_island(tmp_path: Path) -> None:
    shapes = {0: ("n", 1, "a", "b", "c")}
    attributes: dict[str, Any] = {"strides": [3, 1, 1], "pads": [2, 0, 2, 0, 5, 5]}
    inputs = [some(2, 1, 5, 6, 7), some(3, 1, 1, 3, 1), some(3)]
    assert for_a_gpu("Conv", inputs, tmp_path, shapes, **attributes) == ["island"]


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2]}, {"pads": [1, 0, 1, 1]}])
def test_for_a_gpu_pools_are_reductions(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    counted = {"count_include_pad": 1} if op == "AveragePool" else {}
    found = for_a_gpu(op, [some(2, 4, 7, 6)], tmp_path, BATCH, kernel_shape=[3, 2], **counted, **attributes)
    assert "island" not in found and "unfold" in found


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("kernel", [[3, 2], [2, 3]])
@pytest.mark.parametrize("more", [{}, {"pads": [0, 1, 1, 1]}, {"dilations": [2, 1]}])
def test_for_a_gpu_the_last_window_may_lie_inside_partly(
    kernel: list[int], more: dict[str, Any], tmp_path: Path
) -> None:
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [2, 3], "ceil_mode": 1, **more}
    assert "island" not in for_a_gpu("MaxPool", [some(2, 3, 8, 9)], tmp_path, **attributes)


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("AveragePool", {"pads": [1, 1, 1, 1]}),
        ("AveragePool", {"ceil_mode": 1, "strides": [2, 2]}),
        ("LpPool", {"p": 2}),
    ],
)
def test_for_a_gpu_other_pools_are_islands(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    assert for_a_gpu(op, [some(2, 4, 7, 7)], tmp_path, kernel_shape=[2, 2], **attributes) == ["island"]


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(("rows", "fused"), [(512, True), (1024, False)])
def test_for_a_gpu_what_is_too_much_to_hold_unfolded_is_an_island(rows: int, fused: bool, tmp_path: Path) -> None:
    """4 * 9 * 1022 * 1900 elements are more than 2 ** 26, half as many are less."""
    inputs = [some(1, 4, rows, 1902), some(1, 4, 3, 3)]
    assert ("unfold" in for_a_gpu("Conv", inputs, tmp_path)) is fused
