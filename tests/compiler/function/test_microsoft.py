"""Are the operators that ONNX Runtime's optimizer leaves in files launches of ours, with its numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import hjgc
from hjgc.compiler import compile_model
from tests.compiler.function.one_node import Array, check_island, check_native, some
from tests.encoders import example, optimized

BATCH, ROWS, KEYS, HEADS, SIZE = 2, 5, 7, 4, 8
WIDTH = HEADS * SIZE
TOLERANCE = 2e-5


def native(op: str, *inputs: Array | None, outputs: Sequence[str] = ("y",), **attributes: Any) -> list[str]:
    return check_native(op, inputs, outputs=outputs, opset=20, domain="com.microsoft", **attributes)


def island(op: str, *inputs: Array | None, outputs: Sequence[str] = ("y",), **attributes: Any) -> None:
    check_island(op, inputs, outputs=outputs, opset=20, domain="com.microsoft", **attributes)


@pytest.mark.parametrize("op", ["Gelu", "FastGelu", "BiasGelu"])
def test_gelus_with_and_without_a_bias(op: str) -> None:
    x, bias = 3 * some(ROWS, WIDTH), some(WIDTH)
    if op != "BiasGelu":
        assert native(op, x) == ["elementwise"]
    if op != "Gelu":
        assert native(op, x, bias) == ["elementwise"]


@pytest.mark.parametrize("attributes", [{}, {"transA": 1, "alpha": 0.3}, {"transB": 1}, {"transA": 1, "transB": 1}])
def test_products_of_turned_matrices(attributes: Mapping[str, Any]) -> None:
    a = some(BATCH, *((KEYS, ROWS) if attributes.get("transA") else (ROWS, KEYS)))
    b = some(BATCH, *((SIZE, KEYS) if attributes.get("transB") else (KEYS, SIZE)))
    assert native("FusedMatMul", a, b, **attributes) == ["matmul"]


def test_a_product_whose_batches_are_turned_is_an_island() -> None:
    island("FusedMatMul", some(ROWS, BATCH, KEYS), some(BATCH, KEYS, SIZE), transBatchA=1)


ACTIVATIONS: list[tuple[str, tuple[float, ...]]] = [
    ("Relu", ()), ("Tanh", ()), ("Sigmoid", ()), ("LeakyRelu", (0.3,)), ("HardSigmoid", (0.3, 0.4)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given"), ACTIVATIONS)
def test_products_and_convolutions_through_an_activation(name: str, given: tuple[float, ...]) -> None:
    named = dict(zip(("activation_alpha", "activation_beta"), given, strict=False))
    a, b, c = some(ROWS, KEYS), some(SIZE, KEYS), some(SIZE)
    native("FusedGemm", a, b, c, transB=1, alpha=0.5, beta=2.0, activation=name, **named)
    listed: dict[str, Any] = {"activation_params": list(given)} if given else {}
    native("FusedConv", some(1, 3, 6, 6), some(4, 3, 3, 3), some(4), activation=name, **listed)


def test_a_convolution_that_something_is_added_to() -> None:
    images, filters, added = some(1, 3, 6, 6), some(4, 3, 3, 3), some(1, 4, 4, 4)
    native("FusedConv", images, filters, some(4), added, activation="Relu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_norms_of_sums_which_are_results_too(op: str, bias: bool) -> None:
    x, skip, gain, shift = some(BATCH, ROWS, WIDTH), some(BATCH, ROWS, WIDTH) / 2, some(WIDTH), some(WIDTH) / 3
    affine = [gain, shift] if op == "SkipLayerNormalization" else [gain]
    more = [some(WIDTH) / 5] if bias else []
    assert native(op, x, skip, *affine, *more, epsilon=1e-5) == ["elementwise", "layer_norm"]
    native(op, x, skip, *affine, *more, outputs=("y", "", "", "total"))


def test_a_sum_wider_than_its_rows_is_an_island() -> None:
    island("SkipLayerNormalization", some(1, ROWS, WIDTH), some(BATCH, ROWS, WIDTH), some(WIDTH), some(WIDTH))


def test_a_norm_without_a_mean_under_either_name() -> None:
    x, gain = some(BATCH, ROWS, WIDTH), some(WIDTH)
    assert check_native("SimplifiedLayerNormalization", [x, gain], opset=20, axis=-1) == ["layer_norm"]
    island_outputs = ("y", "deviation")
    check_island("SimplifiedLayerNormalization", [x, gain], opset=20, axis=-1, outputs=island_outputs)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_embeddings_of_tokens_places_and_segments(segments: bool, named: bool) -> None:
    ids = np.array([[1, 4, 2], [0, 3, 3]], np.int32)
    tables = some(6, WIDTH), some(9, WIDTH) / 2, some(2, WIDTH) / 3
    inputs: list[Array | None] = [ids, ids % 2 if segments else None, *tables, some(WIDTH), some(WIDTH)]
    if named:
        inputs += [None, np.array([[5, 1, 0], [8, 2, 2]], np.int32)]
    native("EmbedLayerNormalization", *inputs, outputs=("y", ""))


def test_an_embedding_says_how_long_sequences_are() -> None:
    ids, seen = np.array([[1, 4, 2], [3, 0, 0]], np.int32), np.array([[1, 1, 1], [1, 0, 2]], np.int32)
    tables: list[Array | None] = [some(6, WIDTH), some(9, WIDTH), None, some(WIDTH), some(WIDTH)]
    native("EmbedLayerNormalization", ids, None, *tables, seen, outputs=("y", "lengths", "total"))
    native("EmbedLayerNormalization", ids, None, *tables, outputs=("y", "lengths"))


MASKS: dict[str, Array | None] = {
    "none": None,
    "lengths": np.array([ROWS, 3], np.int32),
    "keys": np.array([[1, 1, 2, 1, 1], [0, 1, 1, 1, -1]], np.int32),
    "none of a sequence": np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.int32),
    "keys of each query": np.tril(np.ones((BATCH, ROWS, ROWS), np.int32)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.2}, {"mask_filter_value": -3e38}])
def test_attention_over_rows(mask: str, attributes: Mapping[str, Any]) -> None:
    x, weight, bias = some(BATCH, ROWS, 16), some(16, 3 * WIDTH) / 3, some(3 * WIDTH)
    native("Attention", x, weight, bias, MASKS[mask], num_heads=HEADS, **attributes)


def test_attention_that_sees_what_lies_before_or_has_narrow_values() -> None:
    x, weight, bias = some(BATCH, ROWS, 16), some(16, 3 * WIDTH) / 3, some(3 * WIDTH)
    native("Attention", x, weight, bias, num_heads=HEADS, unidirectional=1)
    narrow = [WIDTH, WIDTH, WIDTH // 2]
    native("Attention", x, weight[:, : sum(narrow)], bias[: sum(narrow)], num_heads=HEADS, qkv_hidden_sizes=narrow)


@pytest.mark.parametrize(("rows", "keys"), [(KEYS, KEYS), (ROWS, KEYS), (1, KEYS)])
def test_rows_that_see_what_lies_before_are_as_many_as_keys(rows: int, keys: int) -> None:
    inputs = some(BATCH, rows, WIDTH), some(BATCH, keys, WIDTH), some(BATCH, keys, WIDTH) / 2
    check = native if rows == keys else island
    check("MultiHeadAttention", *inputs, num_heads=HEADS, unidirectional=1)


def test_attention_with_keys_of_before_is_an_island() -> None:
    x, weight, bias = some(BATCH, ROWS, 16), some(16, 3 * WIDTH) / 3, some(3 * WIDTH)
    past = some(2, BATCH, HEADS, 3, SIZE)
    island("Attention", x, weight, bias, None, past, outputs=("y", "present"), num_heads=HEADS, unidirectional=1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("added", [None, (1, 1), (BATCH, HEADS)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_rows_that_are_queries_keys_and_values(
    bias: bool, added: tuple[int, int] | None, masked: bool
) -> None:
    rows = some(BATCH, ROWS, WIDTH), some(BATCH, KEYS, WIDTH), some(BATCH, KEYS, WIDTH) / 2
    seen = (some(BATCH, KEYS) < 1).astype(np.int32) if masked else None
    more = None if added is None else some(*added, ROWS, KEYS)
    native("MultiHeadAttention", *rows, some(3 * WIDTH) if bias else None, seen, more, num_heads=HEADS)


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize(
    ("form", "how"),
    [("eager, by torch's exporter", "session"), ("sdpa, by torch's exporter", "session"),
     ("by TorchScript's exporter", "session"), ("by TorchScript's exporter", "transformers")],
)  # fmt: skip
def test_an_optimized_encoder_has_no_island(form: str, how: str, types: bool, tmp_path: Path) -> None:
    path = optimized(form, how, tmp_path)
    model = onnx.load(path, load_external_data=False)
    fused = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    assert fused >= ({"FusedGemm"} if how == "session" else {"SkipLayerNormalization", "Attention"})
    if not types:
        del model.graph.value_info[:]
        onnx.save(model, path)
    plan = tmp_path / "plan.hjg"
    result = compile_model(path, plan, targets=("cpu",), kind="function")
    assert not result.plan.islands
    session = ort.InferenceSession(str(path))
    with hjgc.load(plan, weights=tmp_path, device="cpu") as function:
        for tokens in (2, 16, 45):
            feed = example(tokens)
            given = {name: feed[name].astype(np.int32) if "int32" in kind else feed[name]
                     for name, kind in ((x.name, x.type) for x in session.get_inputs())}  # fmt: skip
            for found, wanted in zip(function(given).values(), session.run(None, given), strict=True):
                assert np.abs(found - np.asarray(wanted)).max() < TOLERANCE
