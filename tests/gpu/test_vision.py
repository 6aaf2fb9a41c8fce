"""On the GPU, are convolutions and pools launches that give ONNX Runtime's numbers, plainly and as a graph?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import hjgc
from hjgc.compiler import compile_model
from tests.gpu.served import target
from tests.runtime.functions import HEADER

pytestmark = pytest.mark.gpu
Array = Any  # of numpy
BLOCK = """block ({dtype}[1,24,N,30] x) => ({dtype}[1,40,P,Q] y) {{
    a = Conv <pads = [1, 1, 1, 1]> (x, wide, bias)
    b = Relu (a)
    c = Conv <pads = [2, 2, 2, 2], group = 24, dilations = [2, 2]> (b, each)
    d = Add (c, x)
    e = MaxPool <kernel_shape = [3, 2], pads = [1, 0, 1, 1]> (d)
    y = Conv <strides = [4, 4]> (e, patches, shift)
}}"""
"""Filters of three by three, of one channel each, and patches, over an image of any height."""
SIGNAL = """signal ({dtype}[2,6,N] x) => ({dtype}[2,6,M] y) {{
    a = Conv <pads = [1, 1], strides = [2]> (x, first)
    b = InstanceNormalization (a, gain, offset)
    c = Conv <pads = [1, 1], group = 2> (b, second)
    y = AveragePool <kernel_shape = [4]> (c)
}}"""
WEIGHTS: dict[str, tuple[int, ...]] = {
    "wide": (24, 24, 3, 3), "bias": (24,), "each": (24, 1, 3, 3), "patches": (40, 24, 4, 4), "shift": (40,),
    "first": (6, 6, 3), "gain": (6,), "offset": (6,), "second": (6, 3, 3),
}  # fmt: skip
TOLERANCES = {"float": 2e-4, "float16": 1.5e-2}


def floats(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def written(text: str, dtype: str, path: Path) -> Path:
    model = onnx.parser.parse_model(HEADER + text.format(dtype=dtype))
    for name, shape in WEIGHTS.items():
        if any(name in node.input for node in model.graph.node):
            scaled = floats(*shape) / np.sqrt(max(1, np.prod(shape[1:])))
            kind = np.float32 if dtype == "float" else np.float16
            model.graph.initializer.append(numpy_helper.from_array(scaled.astype(kind), name))
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("text", [BLOCK, SIGNAL.replace("InstanceNormalization (a, gain, offset)", "Tanh (a)")])
def test_images_and_signals_of_any_length(text: str, dtype: str, tmp_path: Path) -> None:
    """A norm is of rows that have a number of columns, so none is among these."""
    compare(text, dtype, tmp_path, "N", (9, 30, 61))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_norm_of_channels(dtype: str, tmp_path: Path) -> None:
    compare(SIGNAL.replace("[2,6,N]", "[2,6,40]"), dtype, tmp_path, "", (40,))


def compare(text: str, dtype: str, folder: Path, axis: str, lengths: tuple[int, ...]) -> None:
    model = written(text, dtype, folder / "model.onnx")
    sizes = {axis: (8, 64)} if axis else None
    compile_model(model, folder / "plan.hjg", targets=(target(),), kind="function", sizes=sizes)
    exact = ort.InferenceSession(written(text, "float", folder / "exact.onnx"), providers=["CPUExecutionProvider"])
    (wanted_input,) = exact.get_inputs()
    with hjgc.load(folder / "plan.hjg", device="cuda") as function:
        assert not function.plan.islands
        for length in lengths:
            shape = [length if isinstance(place, str) else place for place in wanted_input.shape]
            x = floats(*shape).astype(np.float16)
            given = {"x": x.astype(np.float32) if dtype == "float" else x}
            (wanted,) = exact.run(None, {"x": x.astype(np.float32)})
            plain = function(given)["y"]
            np.testing.assert_allclose(plain.astype(np.float32), np.asarray(wanted), atol=TOLERANCES[dtype])
            assert function.wait_captured(120)
            assert function(given)["y"].tobytes() == plain.tobytes()
        assert function.report()["totals"]["quarantined"] == 0
