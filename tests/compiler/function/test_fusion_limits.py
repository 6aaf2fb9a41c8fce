"""What must stay as it is, since one launch would mean something else, or could not be?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("triton")

from tests.compiler.function.for_gpus import checked

pytestmark = pytest.mark.usefixtures("nothing_built")
Node = tuple[str, list[str], str] | tuple[str, list[str], str, dict[str, Any]]
Feed = dict[str, NDArray[Any]]
RANDOM = np.random.default_rng(7)


def made(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.asarray(RANDOM.standard_normal(shape) * 0.5, dtype)


def ops_of(folder: Path, nodes: Sequence[Node], feed: Feed, weights: Feed, outputs: Sequence[str]) -> list[str]:
    """The launches of a plan for a GPU, once it gives what ONNX Runtime gives."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [y], name=y, **(more[0] if more else {})) for op, inputs, y, *more in nodes],
        "graph",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feed.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(x, name) for name, x in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return checked(onnx.shape_inference.infer_shapes(model), feed, folder)


def heads(name: str, wide: bool = False) -> list[Node]:
    """[2, 5, 32] to [2, 4, 5, 8]."""
    cast: list[Node] = [("Cast", [name], f"{name}.w", {"to": TensorProto.FLOAT})] if wide else []
    source = f"{name}.w" if wide else name
    turned: Node = ("Transpose", [f"{name}.r"], f"{name}.h", {"perm": [0, 2, 1, 3]})
    return [*cast, ("Reshape", [source, "split"], f"{name}.r"), turned]


def attention(between: Sequence[Node], weights: str = "soft", wide: bool = False) -> list[Node]:
    """`between` makes `biased` of `scores`."""
    return [
        *heads("q", wide), *heads("k", wide), *heads("v"),
        ("Transpose", ["k.h"], "k.t", {"perm": [0, 1, 3, 2]}), ("MatMul", ["q.h", "k.t"], "scores"), *between,
        ("Softmax", ["biased"], "soft", {"axis": -1}),
        *([] if weights == "soft" else [("Cast", ["soft"], weights, {"to": TensorProto.FLOAT16})]),
        ("MatMul", [weights, "v.h"], "y"), ("Transpose", ["y"], "y.t", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["y.t", "join"], "out"),
    ]  # fmt: skip


SPLIT: Feed = {"split": np.array([2, 5, 4, 8]), "join": np.array([2, 5, 32])}


def rows(dtype: Any = np.float32) -> Feed:
    return {name: made(2, 5, 32, dtype=dtype) for name in "qkv"}


@pytest.mark.parametrize("kind", [np.bool_, np.int64])
def test_a_mask_that_is_cast_to_be_added_is_no_choice_of_keys(kind: Any, tmp_path: Path) -> None:
    mask = RANDOM.integers(0, 2, (2, 4, 5, 5)).astype(kind)
    between: list[Node] = [
        ("Cast", ["mask"], "number", {"to": TensorProto.FLOAT}), ("Add", ["scores", "number"], "biased")
    ]  # fmt: skip
    ops = ops_of(tmp_path, attention(between), {**rows(), "mask": mask}, SPLIT, ["out"])
    assert "softmax" in ops


def test_scores_in_float32_with_a_mask_of_float32_are_attention_of_half_precision(tmp_path: Path) -> None:
    between: list[Node] = [
        ("Cast", ["scores"], "wide", {"to": TensorProto.FLOAT}), ("Add", ["wide", "mask"], "biased")
    ]  # fmt: skip
    nodes = attention(between, weights="half")
    ops = ops_of(tmp_path, nodes, {**rows(np.float16), "mask": made(1, 1, 5, 5)}, SPLIT, ["out"])
    assert "attention_rows" in ops


def test_queries_of_another_type_than_values_are_left_alone(tmp_path: Path) -> None:
    nodes = attention([("Identity", ["scores"], "biased")], weights="half", wide=True)
    assert "softmax" in ops_of(tmp_path, nodes, rows(np.float16), SPLIT, ["out"])


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_a_scale_that_is_no_number(scale: float, tmp_path: Path) -> None:
    nodes = attention([("Mul", ["scores", "scale"], "biased")])
    assert "softmax" in ops_of(tmp_path, nodes, rows(), {**SPLIT, "scale": np.array(scale, np.float32)}, ["out"])


NORM: list[Node] = [("Add", ["a", "c"], "x"), ("LayerNormalization", ["x", "gain", "bias"], "n", {"axis": -1})]
SUM: Feed = {"a": made(6, 16), "c": made(6, 16)}
GAIN: Feed = {"gain": made(16), "bias": made(16), "w": made(16, 8)}


@pytest.mark.parametrize(
    ("before", "behind", "fused"),
    [
        ([], [("MatMul", ["x", "w"], "u")], True),  # who reads the sum comes later
        ([("Softmax", ["x"], "u", {"axis": -1})], [], False),
        ([("MatMul", ["x", "w"], "u")], [], False),
        ([("Reshape", ["x", "flat"], "r"), ("Softmax", ["r"], "u", {"axis": -1})], [], False),
    ],
)
def test_a_norm_leaves_a_sum_alone_that_is_read_before(
    before: list[Node], behind: list[Node], fused: bool, tmp_path: Path
) -> None:
    nodes = [NORM[0], *before, NORM[1], *behind]
    ops = ops_of(tmp_path, nodes, SUM, {**GAIN, "flat": np.array([96])}, ["u", "n"])
    assert ("norm_map" in ops) == fused


def test_a_product_that_is_also_read_in_another_shape_stays_a_product(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("MatMul", ["a", "w"], "y"), ("Reshape", ["y", "row"], "r"), ("Mul", ["y", "r"], "out")
    ]  # fmt: skip
    weights = {"w": made(16, 8), "row": np.array([8])}
    assert ops_of(tmp_path, nodes, {"a": made(1, 16)}, weights, ["out"])[0] == "matmul"


def stacked(turned: bool, names: str) -> list[Node]:
    """Products of x for queries, keys and values, and attention over them."""
    products: list[Node] = [
        ("Gemm", ["x", name], f"{name}.p", {"transB": 1}) if turned else ("MatMul", ["x", name], f"{name}.p")
        for name in names.split()
    ]
    reshaped: list[Node] = [
        ("Reshape", [f"{name}.p", "rows"], letter + names) for letter, name in zip("qkv", names.split(), strict=True)
    ]
    for op, inputs, y, *more in attention([("Identity", ["scores"], "biased")]):
        own = [x if x in SPLIT else x + names for x in inputs]
        reshaped.append((op, own, y + names, more[0] if more else {}))
    return [*products, *reshaped]


def test_weights_named_like_the_transposes_of_others_are_others(tmp_path: Path) -> None:
    nodes = [*stacked(False, "a b c"), *stacked(True, "a.T b.T c.T")]
    nodes.append(("Add", ["outa b c", "outa.T b.T c.T"], "out"))
    weights = {name: made(32, 32) for name in ("a", "b", "c", "a.T", "b.T", "c.T")}
    ops = ops_of(tmp_path, nodes, {"x": made(10, 32)}, {**SPLIT, **weights, "rows": np.array([2, 5, 32])}, ["out"])
    assert ops.count("attention_rows") == 2 and ops.count("matmul") == 2


def test_products_whose_rows_are_two_of_attentions_are_not_stacked(tmp_path: Path) -> None:
    weights = {name: made(16, 64) for name in "abc"}
    ops = ops_of(
        tmp_path, stacked(False, "a b c"), {"x": made(5, 16)}, {**SPLIT, **weights, "rows": np.array([2, 5, 32])},
        ["outa b c"],
    )  # fmt: skip
    assert ops.count("matmul") == 3 and "attention_rows" in ops


def test_keys_that_all_heads_share_without_an_axis_for_them_are_left_alone(tmp_path: Path) -> None:
    nodes: list[Node] = [
        *heads("q"), *heads("v"), ("MatMul", ["q.h", "k"], "scores"), ("Softmax", ["scores"], "soft", {"axis": -1}),
        ("MatMul", ["soft", "v.h"], "y"), ("Transpose", ["y"], "y.t", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["y.t", "join"], "out"),
    ]  # fmt: skip
    feed = {"q": made(2, 5, 32), "v": made(2, 5, 32), "k": made(8, 5)}
    assert "softmax" in ops_of(tmp_path, nodes, feed, SPLIT, ["out"])


CUTS = {
    "columns side by side": ((2, 5, 96), -1, [(0, 32), (32, 64), (64, 96)], True),
    "columns with others between": ((2, 5, 140), -1, [(4, 36), (40, 72), (100, 132)], True),
    "the same columns": ((2, 5, 40), -1, [(8, 40), (8, 40), (8, 40)], True),
    "rows of one sequence": ((1, 12, 32), 1, [(0, 5), (5, 10), (7, 12)], False),
    "first rows of several": ((2, 9, 32), 1, [(0, 5), (0, 5), (0, 5)], False),
    "sequences": ((6, 5, 32), 0, [(0, 2), (2, 4), (4, 6)], False),
}


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_cut_out_is_read_where_it_lies_if_heads_lie_side_by_side_there(cut: str, tmp_path: Path) -> None:
    shape, axis, parts, fused = CUTS[cut]
    nodes: list[Node] = [("Slice", ["x", f"{name}.from", f"{name}.to", "axis"], name) for name in "qkv"]
    bounds = {f"{name}.{end}": np.array([part[i]]) for name, part in zip("qkv", parts, strict=True)
              for i, end in enumerate(("from", "to"))}  # fmt: skip
    batch = shape[0] if axis else 2
    rest = {"split": np.array([batch, 5, 4, 8]), "join": np.array([batch, 5, 32]), "axis": np.array([axis])}
    nodes += attention([("Identity", ["scores"], "biased")])
    ops = ops_of(tmp_path, nodes, {"x": made(*shape)}, {**bounds, **rest}, ["out"])
    assert ops.count("slice") == (0 if fused else 3) and "attention_rows" in ops


def test_numbers_that_are_computed_of_numbers_are_seen(tmp_path: Path) -> None:
    """A scale that TorchScript's exporter computes from the size of a head."""
    constants = {"size": np.array(8, np.int64), "one": np.array(1, np.float32)}
    between: list[Node] = [
        ("Cast", ["size"], "float", {"to": TensorProto.FLOAT}), ("Sqrt", ["float"], "root"),
        ("Div", ["one", "root"], "scale"), ("Mul", ["scores", "scale"], "biased"),
    ]  # fmt: skip
    ops = ops_of(tmp_path, attention(between), rows(), {**SPLIT, **constants}, ["out"])
    assert ops == ["attention_rows", "elementwise"]  # and a copy into the result


@pytest.mark.parametrize("index", [1, -1, [2], [[0]]])
def test_one_place_that_is_known_is_a_slice(index: Any, tmp_path: Path) -> None:
    nodes: list[Node] = [("Gather", ["x", "index"], "y", {"axis": 1}), ("Softmax", ["y"], "out")]
    assert ops_of(tmp_path, nodes, {"x": made(4, 3, 5)}, {"index": np.array(index)}, ["out"])[0] == "slice"


BESIDE: dict[str, tuple[tuple[int, ...], bool]] = {
    "of each row": ((8, 1, 1), True),
    "of each row, with an axis before": ((1, 8, 1, 1), True),
    "of each element": ((1, 8, 3, 5), True),
    "of each column": ((3, 5), True),
    "of all": ((), True),
    "of a part of the columns": ((3, 1), False),
    "of the other part": ((5,), False),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("constant", [False, True])
def test_what_is_made_of_a_view_of_a_product_is_made_by_it(beside: str, constant: bool, tmp_path: Path) -> None:
    shape, fused = BESIDE[beside]
    nodes: list[Node] = [
        ("MatMul", ["w", "x"], "p"), ("Reshape", ["p", "image"], "i"), ("Mul", ["i", "f"], "m"), ("Relu", ["m"], "r"),
        ("Softmax", ["r"], "s", {"axis": -1}), ("Add", ["s", "r"], "out"),
    ]  # fmt: skip
    feed, weights = {"x": made(1, 6, 15)}, {"w": made(8, 6), "image": np.array([1, 8, 3, 5])}
    (weights if constant else feed)["f"] = made(*shape)
    ops = ops_of(tmp_path, nodes, feed, weights, ["out"])
    first = ["matmul_map"] if fused else ["matmul", "elementwise"]
    assert ops == [*first, "softmax", "elementwise"]


def test_a_result_is_not_made_in_another_shape_than_its_own(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("MatMul", ["w", "x"], "p"), ("Reshape", ["p", "image"], "i"), ("Relu", ["i"], "out")
    ]  # fmt: skip
    weights = {"w": made(8, 6), "image": np.array([1, 8, 3, 5])}
    assert ops_of(tmp_path, nodes, {"x": made(1, 6, 15)}, weights, ["out"]) == ["matmul", "elementwise"]
