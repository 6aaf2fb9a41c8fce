"""With ONNX Runtime's CUDA provider, are islands computed on the GPU, in graphs with what lies around them?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import hjgc
from hjgc.plan_format.errors import RunError
from hjgc.runtime.errors import DeadlineExceeded
from hjgc.runtime.function import Function
from tests.gpu.served import target
from tests.runtime.functions import AROUND, HEADER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed"
    ),
]
Array = Any  # of numpy

PATIENCE = 120
CONVOLVED = """convolved (float[1,256,32,32] x, float one) => (float[1,256,32,32] y) {
    a = ConvTranspose <pads = [1, 1, 1, 1]> (x, first)
    b = Relu (a)
    c = ConvTranspose <pads = [1, 1, 1, 1]> (b, second)
    d = Add (c, x)
    e = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d)
    f = Tanh (e)
    y = Mul (f, one)
}"""
COUNTED = """counted (float[N] a, int64 trip) => (y) <float[N] r> {
    t = Exp (a)
    go = Constant <value = bool {1}> ()
    r = Loop (trip, go, t) <
        body = step (int64 i, bool c, float[N] v) => (bool d, float[N] w) { d = Identity (c) w = Sin (v) }
    >
    y = Neg (r)
}"""
FAILING = """failing (float[N,4] a, int64 n) => (y) <float[1,4] r> {
    t = Exp (a) go = Constant <value = bool {1}> ()
    r = Loop (n, go, t) <
        body = step (int64 i, bool c, float[M,4] v) => (bool d, float[K,4] w) {
            d = Identity (c) w, u = Split <axis = 0, num_outputs = 2> (v)
        }
    >
    y = Neg (r)
}"""
"""Halves its rows again and again, and gives one: else it is not as declared."""
FOUND = """found (float[N] a) => (k, float[N] y) { t = Abs (a) k = NonZero (t) y = com.microsoft.QuickGelu (t) }"""
DRAWN = """drawn (float[N,4] a) => (float[N,4] y) <float[N,4] r> {
    t = Exp (a) r = RandomNormalLike (t) y = Add (r, t)
}"""
LSTM = """lstm (float[5,2,8] x) => (float[5,1,2,4] y) {
    t = Tanh (x) h = LSTM <hidden_size = 4> (t, w, r) y = Neg (h)
}"""


def floats(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def opened(folder: Path, text: str, sizes: dict[str, tuple[int, int]], **weights: Array) -> Function:
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save_model(model, folder / "model.onnx")
    targets = (target(),)
    hjgc.compile(folder / "model.onnx", folder / "plan.hjg", kind="function", sizes=sizes, targets=targets)
    return hjgc.load(folder / "plan.hjg", device="cuda")


def expected(folder: Path, **inputs: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def test_convolutions_are_computed_on_the_device_and_captured_with_their_weights(tmp_path: Path) -> None:
    weights = {name: floats(256, 256, 3, 3) * np.float32(scale) for name, scale in (("first", 0.02), ("second", 0.03))}
    x = floats(1, 256, 32, 32)
    with opened(tmp_path, CONVOLVED, {}, **weights) as function:
        for one in (1, 2):
            (wanted,) = expected(tmp_path, x=x, one=np.array(one, np.float32))
            np.testing.assert_allclose(function({"x": x, "one": one})["y"], wanted, atol=3e-2)
        assert function.wait_captured(PATIENCE)
        (wanted,) = expected(tmp_path, x=x, one=np.array(3, np.float32))
        np.testing.assert_allclose(function({"x": x, "one": 3})["y"], wanted, atol=3e-2)
        report = function.report()
    islands = report["islands"]
    assert islands["on_host"] == {} and islands["bytes_to_host"] == islands["bytes_to_device"] == 0
    (whole,) = report["segments"]
    assert (whole["state"], whole["hits"], whole["last_segment"] > whole["segment"]) == ("PROMOTED", 1, True)


def test_a_branch_on_the_device_takes_only_its_condition_from_the_host(tmp_path: Path) -> None:
    with opened(tmp_path, AROUND, {"N": (1, 64)}) as function:
        a = floats(8, 4)
        for _ in range(3):
            for go in (True, False):
                (wanted,) = expected(tmp_path, a=a, go=np.array(go))
                np.testing.assert_allclose(function({"a": a, "go": go})["y"], wanted, atol=1e-5)
            assert function.wait_captured(PATIENCE)
        report = function.report()
    islands = report["islands"]
    assert islands["providers"] == {"CUDAExecutionProvider": 1}
    assert (islands["bytes_to_host"], islands["bytes_to_device"]) == (islands["runs"], 0)
    assert [e["state"] for e in report["segments"] if e["kind"] == "static"] == ["PROMOTED"] * 2


def test_a_deadline_ends_a_loop_on_the_device(tmp_path: Path) -> None:
    with opened(tmp_path, COUNTED, {"N": (1, 64)}) as function:
        a = floats(8)
        with pytest.raises(DeadlineExceeded, match="island"):
            function({"a": a, "trip": 1 << 40}, deadline=0.5)
        (wanted,) = expected(tmp_path, a=a, trip=np.array(3))
        np.testing.assert_allclose(function({"a": a, "trip": 3})["y"], wanted, atol=1e-5)
        assert function.report()["islands"]["providers"] == {"CUDAExecutionProvider": 1}


def test_an_island_that_fails_on_the_device_names_its_nodes_and_the_next_call_is_served(tmp_path: Path) -> None:
    with opened(tmp_path, FAILING, {"N": (1, 64)}) as function:
        a = floats(8, 4)
        with pytest.raises(RunError, match=r"island\.0 \(ONNX nodes .*\) failed in ONNX Runtime"):
            function({"a": a, "n": 2})
        found = function({"a": a, "n": 3})["y"]
        np.testing.assert_allclose(found, -np.exp(a[:1]), rtol=1e-5)
        assert function.report()["islands"]["providers"] == {"CUDAExecutionProvider": 1}


def test_what_only_the_host_holds_stays_there_and_the_rest_does_not(tmp_path: Path) -> None:
    with opened(tmp_path, FOUND, {"N": (1, 64)}) as function:
        a = floats(8)
        for _ in range(2):
            k, y = expected(tmp_path, a=a)
            found = function({"a": a})
            np.testing.assert_array_equal(found["k"], k)
            np.testing.assert_allclose(found["y"], y, atol=1e-5)
        islands = function.report()["islands"]
    assert islands["on_host"] == {"it has values that only the host holds": 1}, islands


def test_random_numbers_are_drawn_anew_in_every_call(tmp_path: Path) -> None:
    with opened(tmp_path, DRAWN, {"N": (1, 64)}) as function:
        a = floats(8, 4)
        found = [function({"a": a})["y"]]
        for _ in range(3):
            function.wait_captured(PATIENCE)
            found.append(function({"a": a})["y"])
        assert len({array.tobytes() for array in found}) == len(found)
        assert any(e["kind"] == "dynamic" for e in function.report()["segments"])


def test_what_kernels_borrow_of_the_host_is_given_back_before_a_plan_is_closed(tmp_path: Path) -> None:
    x, w, r = floats(5, 2, 8), floats(1, 16, 8), floats(1, 16, 4)
    for _ in range(3):
        with opened(tmp_path, LSTM, {}, w=w, r=r) as function:
            for _ in range(3):
                (wanted,) = expected(tmp_path, x=x)
                np.testing.assert_allclose(function({"x": x})["y"], wanted, atol=1e-2)
                assert function.wait_captured(PATIENCE)
            assert function.report()["islands"]["providers"] == {"CUDAExecutionProvider": 1}
