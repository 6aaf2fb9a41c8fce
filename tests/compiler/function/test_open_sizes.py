"""Where axes are open, are slices and ranges launches if their sizes are certain, and islands if not?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest

from hjgc.tools.onnx_backend import PreparedModel

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
LAST = """g (float[batch, n, 3] x) => (float[batch, m, 3] y) {
    start = Constant <value = int64[1] {-1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    axis = Constant <value = int64[1] {1}> ()
    y = Slice(x, start, end, axis)
}"""
FIRST = """g (float[n, 3] x) => (float[n, 2] y)
<float[8, 2] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}> {
    rows = Shape <start = 0, end = 1> (x)
    zero = Constant <value = int64[1] {0}> ()
    y = Slice(table, zero, rows, zero)
}"""
POSITIONS = """g (float[past, 3] cache, float[n, 3] x) => (int64[n] y) {
    one = Constant <value = int64 {1}> ()
    axes = Constant <value = int64[1] {0}> ()
    held = Shape <start = 0, end = 1> (cache)
    new = Shape <start = 0, end = 1> (x)
    first = Squeeze(held, axes)
    count = Squeeze(new, axes)
    end = Add(first, count)
    y = Range(first, end, one)
}"""


TOWARDS_ZERO = """g (float[n] x) => (float[m] y) {
    five = Constant <value = int64[1] {5}> ()
    two = Constant <value = int64[1] {2}> ()
    ten = Constant <value = int64[1] {10}> ()
    size = Shape (x)
    less = Sub(size, five)
    half = Div(less, two)
    shape = Add(half, ten)
    y = ConstantOfShape(shape)
}"""
SQUEEZED = """g (float[batch, n, 3] x) => (float y) { y = Squeeze(x) }"""
BACKWARDS = """g (float[n] x) => (float[m] y) {
    start = Constant <value = int64[1] {-10}> ()
    end = Constant <value = int64[1] {-20}> ()
    axes = Constant <value = int64[1] {0}> ()
    step = Constant <value = int64[1] {-1}> ()
    three = Constant <value = float[3] {0, 1, 2}> ()
    some = Slice(three, start, end, axes, step)
    y = Concat <axis = 0> (some, x)
}"""
CHOSEN = """g (float[n] x) => (int64[1] y) {
    table = Constant <value = int64[4] {4, 5, 6, 7}> ()
    one = Constant <value = int64[1] {1}> ()
    size = Shape (x)
    place = Sub(size, one)
    least = Min(place, one)
    y = Gather(table, least)
}"""


def given(model: onnx.ModelProto, **sizes: int) -> dict[str, np.ndarray]:
    shapes = {
        value.name: [sizes.get(axis.dim_param, axis.dim_value) for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    return {name: np.random.default_rng(len(name)).random(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("text", "ranges", "native"),
    [
        (LAST, {"n": (1, 9)}, True),
        (LAST, {"n": (0, 9)}, False),  # there may be no last one
        (FIRST, {"n": (0, 8)}, True),
        (FIRST, {"n": (0, 9)}, False),  # the table may be too short
        (POSITIONS, {}, True),
        (TOWARDS_ZERO, {"n": (0, 9)}, False),  # a difference that may be under 0 is divided towards 0
        (TOWARDS_ZERO, {"n": (5, 9)}, True),
        (SQUEEZED, {"batch": (0, 3), "n": (0, 9)}, False),
        (BACKWARDS, {}, True),
        (CHOSEN, {"n": (1, 9)}, True),
    ],
)
def test_what_is_certain_is_native_and_both_are_right(
    text: str, ranges: Mapping[str, tuple[int, int]], native: bool
) -> None:
    model = onnx.parser.parse_model(HEADER + text)
    judge = onnxruntime.InferenceSession(model.SerializeToString())
    prepared = PreparedModel(model, ranges)
    try:
        assert (prepared.plan.islands == ()) == native
        low = ranges.get("n", (0, 9))[0]
        for n, past in ((max(1, low), 0), (max(2, low), 5), (8, 3)):
            inputs = given(model, batch=2, n=n, past=past)
            for found, expected in zip(prepared.run(inputs), judge.run(None, inputs), strict=True):
                assert np.array_equal(np.asarray(found), np.asarray(expected))
    finally:
        prepared.close()


def test_an_axis_that_only_a_product_names_is_a_size_of_its_own() -> None:
    model = onnx.parser.parse_model(HEADER + "g (float[a, b] x) => (float[a, b] y) { y = Softmax <axis = 1> (x) }")
    for axis, text in zip(model.graph.input[0].type.tensor_type.shape.dim, ("2*n", "2*m"), strict=True):
        axis.dim_param = text
    prepared = PreparedModel(model)
    try:
        assert [size.name for size in prepared.plan.phase("call").sizes] == ["x.0", "x.1"]
        for shape in ((4, 1), (6, 2), (3, 3)):
            (found,) = prepared.run({"x": np.zeros(shape, np.float32)})
            assert np.allclose(found, 1 / shape[1])
    finally:
        prepared.close()


def test_names_that_say_nothing_are_sizes_of_their_own() -> None:
    model = onnx.parser.parse_model(HEADER + "g (float[a, b] x) => (float[a, b] y) { y = Exp(x) }")
    for axis in model.graph.input[0].type.tensor_type.shape.dim:
        axis.dim_param = "?"
    prepared = PreparedModel(model)
    try:
        (found,) = prepared.run({"x": np.zeros((2, 3), np.float32)})
        assert found.shape == (2, 3)
    finally:
        prepared.close()
