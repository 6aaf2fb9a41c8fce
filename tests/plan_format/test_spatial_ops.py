"""Do ops that move elements and slide windows refuse operands that do not fit?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.sizes import Expression, Size


def t(*shape: Expression, dtype: DType = "float32") -> TensorType:
    return TensorType(dtype, shape)


def places(*shape: Expression) -> TensorType:
    return t(*shape, dtype="int64")


X, IMAGE = t(3, 4), t(1, 2, 5, 5)
SLIDE: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
CONV = {**SLIDE, "groups": 1}
POOL = {**SLIDE, "kind": "max", "kernel": (2, 2), "up": False, "count_pads": False, "power": 1}
LINE: dict[str, Any] = {
    "axis": 2, "mode": "linear", "places": "asymmetric", "rounding": "floor", "scale": 2.0, "start": 0.0, "end": 1.0,
    "outside": 0.0, "cubic": -0.75, "inside_only": False,
}  # fmt: skip
SAMPLE = {"mode": "nearest", "padding": "zeros", "align": False}
BLOCKS = {**SLIDE, "image": (4, 4), "block": (2, 2)}
CONCAT = {"axis": 1}
REFUSED: list[tuple[str, list[TensorType], list[TensorType], dict[str, Any]]] = [
    ("shape_of", [X], [], {"start": 1, "end": 3}),
    ("concat", [X, t(3)], [], CONCAT),
    ("concat", [X, t(3, 4, 5)], [], CONCAT),
    ("concat", [t(), t()], [], CONCAT),
    ("fill", [], [t(2, dtype="uint8")], {"value": "uint8:256"}),
    ("fill", [X], [X], {"value": "float32:1"}),
    ("fill", [], [X], {"value": "neg(float32:1)"}),
    ("iota", [], [t(3)], {"start": 0, "step": 1}),
    ("iota", [], [places(3, 1)], {"start": 0, "step": 1}),
    ("bitcast", [X], [t(3, 4, dtype="int16")], {}),
    ("bitcast", [t(3, dtype="uint8")], [t(3, dtype="bool")], {}),
    ("pad", [X], [X], {"mode": "mirror", "before": (0, 0)}),
    ("pad", [X], [X], {"mode": "edge", "before": (0,)}),
    ("pad", [X, places(1)], [X], {"mode": "constant", "before": (0, 0)}),
    ("gather_elements", [X, t(3, 4)], [], {"axis": 0}),
    ("gather_elements", [X, places(3, 5)], [], {"axis": 0}),
    ("gather_elements", [X, places(3, Size("n"))], [], {"axis": 0}),
    ("gather_nd", [X, places(2, 3)], [], {"batch": 0}),
    ("gather_nd", [X, places(2, 1)], [], {"batch": 1}),
    ("gather_nd", [X, places(2, Size("n"))], [], {"batch": 0}),
    ("scatter_elements", [X, places(3, 4), t(3, 3)], [], {"axis": 0, "reduction": "none"}),
    ("scatter_elements", [X, places(3, 4), X], [], {"axis": 0, "reduction": "mean"}),
    ("scatter_elements", [X, places(3, 4), places(3, 4)], [], {"axis": 0, "reduction": "none"}),
    ("scatter_nd", [X, places(2, 1), t(2, 3)], [], {"reduction": "none"}),
    ("scatter_nd", [X, places(2, 3), t(2)], [], {"reduction": "none"}),
    ("reverse_sequence", [X, places(3)], [], {"time": 0, "batch": 1}),
    ("reverse_sequence", [X, places(3)], [], {"time": 0, "batch": 0}),
    ("conv", [IMAGE, t(4, 3, 3, 3)], [], CONV),
    ("conv", [IMAGE, t(4, 2, 3, 3), t(3)], [], CONV),
    ("conv", [IMAGE, t(4, 2, 6, 3)], [], CONV),
    ("conv", [IMAGE, t(4, 2, 3, 3)], [], {**CONV, "strides": (0, 1)}),
    ("conv", [IMAGE, t(4, 2, 3, 3)], [], {**CONV, "pads": (0, 0)}),
    ("conv", [IMAGE, t(4, 2, 3, 3)], [], {**CONV, "groups": 0}),
    ("conv", [IMAGE, t(4, 2, 3, 3)], [], {**CONV, "pads": (1 << 40, 0, 0, 0)}),
    ("conv", [IMAGE, t(4, 2, 3, 3)], [], {**CONV, "strides": (1, 1 << 31)}),
    ("conv", [IMAGE, t(4, 2, 1, 1)], [], {**CONV, "dilations": (1, 1 << 31)}),
    ("conv_transpose", [IMAGE, t(2, 2, 3, 3)], [], {**CONV, "strides": (1 << 40, 1), "extra": (0, 0)}),
    ("pool", [IMAGE], [], {**POOL, "kernel": (1 << 31, 1), "pads": ((1 << 31) - 1, 0, 0, 0)}),
    ("col2im", [t(1, 0, 1)], [], {**BLOCKS, "block": (1 << 40, 4), "pads": (0, 0, (1 << 31) - 1, 0)}),
    ("conv_transpose", [IMAGE, t(3, 2, 3, 3)], [], {**CONV, "extra": (0, 0)}),
    ("conv_transpose", [IMAGE, t(2, 2, 3, 3)], [], {**CONV, "extra": (0,)}),
    ("pool", [IMAGE], [], {**POOL, "kernel": (2,)}),
    ("pool", [IMAGE], [], {**POOL, "kernel": (6, 2)}),
    ("pool", [places(1, 2, 5, 5)], [], {**POOL, "kind": "average"}),
    ("pool", [t(1, 2, Size("h"), 5)], [], {**POOL, "up": True, "strides": (2, 2)}),
    ("col2im", [t(1, 8, 8)], [], BLOCKS),
    ("col2im", [t(1, 7, 9)], [], BLOCKS),
    ("affine_grid", [t(1, 2, 3)], [t(1, 4, 4, 4, 3)], {"align": False}),
    ("grid_sample", [IMAGE, t(1, 3, 3, 3)], [], SAMPLE),
    ("grid_sample", [IMAGE, t(2, 3, 3, 2)], [], SAMPLE),
    ("grid_sample", [IMAGE, t(1, 3, 3, 2)], [], {**SAMPLE, "mode": "best"}),
    ("resize", [IMAGE], [t(1, 2, 10, 5)], {**LINE, "places": "elsewhere"}),
    ("resize", [places(1, 2, 5, 5)], [places(1, 2, 10, 5)], LINE),
    ("resize", [IMAGE], [t(1, 2, 10)], LINE),
]


@pytest.mark.parametrize(("op", "inputs", "outputs", "attributes"), REFUSED)
def test_operands_that_do_not_fit_are_refused(op: str, inputs: Any, outputs: Any, attributes: Any) -> None:
    infer = all_ops()[op].infer
    assert infer is not None
    with pytest.raises(ValueError, match="expected"):
        infer(inputs, outputs, attributes)


def test_windows_are_counted_of_sizes_without_numbers() -> None:
    infer = all_ops()["conv"].infer
    assert infer is not None
    height = Size("h")
    found = infer([t(1, 2, height, 5), t(4, 2, 3, 3)], [], {**CONV, "pads": (1, 0, 1, 0)})
    assert found == (t(1, 4, height, 3),)


def test_no_blocks_make_an_image_of_zeros_however_large_they_are() -> None:
    image = torch.ones(1, 0, 4, 4)
    large = {**BLOCKS, "block": (1 << 30, 1 << 30), "pads": ((1 << 30) - 4, (1 << 30) - 4, 0, 0)}
    all_ops()["col2im"].reference([torch.empty(1, 0, 1)], [image], **large)
    image = torch.ones(1, 2, 4, 4)
    all_ops()["col2im"].reference([torch.empty(1, 8, 0)], [image], **{**BLOCKS, "image": (1, 4)})
    assert not image.any()
