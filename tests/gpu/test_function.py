"""On the GPU, does a function compute what ONNX Runtime does, and do its graphs give the same bits at every size?"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import hjgc
from hjgc.compiler import compile_model
from hjgc.runtime.function import Function
from tests.gpu.served import target

Array = Any  # of numpy

WIDTH, WIDE, MOST = 256, 1024, 512
SIZES = (1, 7, 64, 129, 512)
PATIENCE = 120
TOLERANCE = {"float32": 2e-3, "float16": 1e-2}
"""Of the largest number: products may be rounded to TF32, and half precision is rounded after other operators."""


@cache
def _home() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="hjgc-gpu-function-")


def _weights(dtype: str) -> dict[str, Array]:
    generator = np.random.default_rng(7)
    shapes = {"up": (WIDTH, WIDE), "down": (WIDE, WIDTH), "up_bias": (WIDE,), "down_bias": (WIDTH,)}
    weights = {name: generator.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    weights |= {"scale": generator.uniform(0.5, 1.5, WIDTH), "shift": generator.standard_normal(WIDTH)}
    return {name: array.astype(dtype) for name, array in weights.items()}


@cache
def model(dtype: str, island: bool) -> Path:
    """Product, bias, GELU, product, bias, residual, layer norm over any number of rows; with `island`, an If in between
    that no launch computes."""
    path = Path(_home().name) / f"{dtype}-{island}.onnx"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rows = [helper.make_tensor_value_info(name, kind, ["rows", WIDTH]) for name in "xy"]
    inputs = [rows[0], *([helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])] if island else [])]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"]),
        helper.make_node("Add", ["a", "up_bias"], ["b"]),
        helper.make_node("Gelu", ["b"], ["c"]),
        *([_choice(kind)] if island else []),
        helper.make_node("MatMul", ["chosen" if island else "c", "down"], ["d"]),
        helper.make_node("Add", ["d", "down_bias"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["f"]),
        helper.make_node("LayerNormalization", ["f", "scale", "shift"], ["y"]),
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in _weights(dtype).items()]
    graph = helper.make_graph(nodes, "block", inputs, rows[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _choice(kind: int) -> onnx.NodeProto:
    branches: dict[str, Any] = {}
    for name, op in (("then_branch", "Abs"), ("else_branch", "Neg")):
        given = helper.make_tensor_value_info(name, kind, ["rows", WIDE])
        branches[name] = helper.make_graph([helper.make_node(op, ["c"], [name])], name, [], [given])
    return helper.make_node("If", ["go"], ["chosen"], **branches)


@cache
def plan(dtype: str, island: bool = False) -> Path:
    source = model(dtype, island)
    options: dict[str, Any] = {"targets": [target()], "kind": "function", "sizes": {"rows": (1, MOST)}}
    return compile_model(source, source.with_suffix(".hjg"), **options).path


def given(rows: int, dtype: str, island: bool = False, seed: int = 0) -> dict[str, Array]:
    x = np.random.default_rng([seed, rows]).standard_normal((rows, WIDTH)).astype(dtype)
    return {"x": x, **({"go": np.bool_(rows % 2 == 0)} if island else {})}


def expected(dtype: str, inputs: dict[str, Array], island: bool = False) -> Array:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(model(dtype, island), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(array) for name, array in inputs.items()})[0]


def states(function: Function) -> set[str]:
    return {entry["state"] for entry in function.report()["segments"] if entry["kind"] == "static"}


@pytest.mark.gpu
@pytest.mark.parametrize("island", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_are_onnx_runtimes_and_graphs_give_the_same_bits(dtype: str, island: bool) -> None:
    with hjgc.load(plan(dtype, island)) as function:
        plain: dict[int, bytes] = {}
        for rows in SIZES:
            inputs = given(rows, dtype, island)
            found, wanted = function(inputs)["y"], expected(dtype, inputs, island)
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
            assert difference < TOLERANCE[dtype] * np.abs(wanted).max()
            plain[rows] = found.tobytes()
        assert function.wait_captured(PATIENCE)
        assert states(function) == {"PROMOTED"}, function.report()["segments"]
        for rows in SIZES:
            assert function(given(rows, dtype, island))["y"].tobytes() == plain[rows]
        assert function.report()["totals"]["hits"] == len(SIZES) * (2 if island else 1)


@pytest.mark.gpu
def test_a_graph_serves_other_numbers_than_those_it_was_checked_with() -> None:
    with hjgc.load(plan("float16"), capture=False) as function:
        plain = [function(given(64, "float16", seed=seed))["y"].tobytes() for seed in range(4)]
    with hjgc.load(plan("float16")) as function:
        function(given(64, "float16"))
        assert function.wait_captured(PATIENCE)
        again = [function(given(64, "float16", seed=seed))["y"].tobytes() for seed in range(4)]
        assert states(function) == {"PROMOTED"}
    assert again == plain


@pytest.mark.gpu
def test_rows_are_the_same_alone_and_after_calls_of_other_sizes() -> None:
    with hjgc.load(plan("float16")) as function:
        first = function(given(7, "float16"))["y"].tobytes()
        for rows in (512, 1, 129):
            function(given(rows, "float16"))
        assert function(given(7, "float16"))["y"].tobytes() == first


@pytest.mark.gpu
def test_a_call_may_be_made_after_one_whose_deadline_had_passed() -> None:
    with hjgc.load(plan("float32")) as function:
        wanted = function(given(64, "float32"))["y"].tobytes()
        with pytest.raises(hjgc.DeadlineExceeded):
            function(given(512, "float32"), deadline=0)
        assert function(given(64, "float32"))["y"].tobytes() == wanted
