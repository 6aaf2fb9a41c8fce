"""Is an image read between its pixels as ONNX Runtime does it?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.function.one_node import Array, check_island, check_native, some

IMAGE = {0: ("n", 2, "h", "w")}
PLACES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"]
MODES: list[dict[str, Any]] = [
    {"mode": "linear"},
    {"mode": "cubic"},
    {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    *(
        {"mode": "nearest", "nearest_mode": f"{word}"}
        for word in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
]


def scaled(*factors: float) -> list[Array | None]:
    return [some(1, 2, 4, 6), None, np.array([1, 1, *factors], np.float32)]


def sized(*sizes: int) -> list[Array | None]:
    return [some(1, 2, 4, 6), None, None, np.array([1, 2, *sizes])]


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("attributes", MODES)
def test_images_are_resized(places: str, attributes: dict[str, Any]) -> None:
    more: dict[str, Any] = {"coordinate_transformation_mode": places, "opset": 19, **attributes}
    assert check_native("Resize", scaled(2.5, 0.5), constants=[2], **more) == ["resize", "resize"]
    check_native("Resize", sized(7, 5), constants=[3], **more)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("inputs", [scaled(2, 0.5), scaled(3, 1)])
def test_images_of_any_size_are_resized_by_whole_numbers(mode: str, inputs: list[Array | None]) -> None:
    check_native("Resize", inputs, constants=[2], shapes=IMAGE, mode=mode)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_some_axes_are_resized_in_proportion(policy: str) -> None:
    inputs = [some(1, 2, 4, 6), None, None, np.array([7, 8])]
    more: dict[str, Any] = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "mode": "linear"}
    check_native("Resize", inputs, constants=[3], opset=19, **more)


def test_a_crop_has_a_number_outside() -> None:
    inputs = [some(1, 2, 4, 6), np.array([0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2], np.float32), None, np.array([1, 2, 5, 7])]
    more: dict[str, Any] = {
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 9.0,
        "mode": "linear",
    }
    check_native("Resize", inputs, constants=[1, 3], **more)


ISLANDS: list[tuple[list[Array | None], dict[str, Any]]] = [
    (scaled(0.5, 0.5), {"mode": "linear", "antialias": 1}),
    (scaled(0.6, 0.6), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    (scaled(1.5, 1), {"shapes": IMAGE}),
]


@pytest.mark.parametrize(("inputs", "more"), ISLANDS)
def test_what_is_smoothed_or_lies_between_is_an_island(inputs: list[Array | None], more: dict[str, Any]) -> None:
    check_island("Resize", inputs, constants=[2], opset=19, **more)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_images_are_enlarged_as_of_old(op: str, opset: int, mode: str) -> None:
    inputs = [some(1, 2, 4, 6), np.array([1, 1, 2, 1.5], np.float32)]
    check_native(op, inputs, constants=[1], opset=opset, mode=mode)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_images_are_read_at_places(mode: str, padding: str, align: int) -> None:
    shapes = {0: ("n", 2, 4, 6), 1: ("n", 3, 5, 2)}
    more: dict[str, Any] = {"mode": mode, "padding_mode": padding, "align_corners": align}
    launches = check_native("GridSample", [some(2, 2, 4, 6), some(2, 3, 5, 2)], shapes=shapes, opset=20, **more)
    assert launches == ["grid_sample"]


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_places_of_an_image_that_is_turned(size: tuple[int, ...], align: int) -> None:
    axes = len(size) - 2
    inputs = [some(2, axes, axes + 1), np.array(size)]
    assert check_native("AffineGrid", inputs, constants=[1], opset=20, align_corners=align) == ["affine_grid"]
