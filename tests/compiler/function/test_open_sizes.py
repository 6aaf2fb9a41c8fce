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
        for n, past in ((1, 0), (2, 5), (8, 3)):
            inputs = given(model, batch=2, n=n, past=past)
            for found, expected in zip(prepared.run(inputs), judge.run(None, inputs), strict=True):
                assert np.array_equal(found, expected)
    finally:
        prepared.close()
