"""Are attention nodes launches of ours that compute what they say, at any size?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiler.function.one_node import (
    Array,
    check_island,
    check_native,
    model_of,
    onnx_itself,
    onnx_runtime,
    ours,
    some,
)

B, H, G, S, T, D = 2, 4, 2, 3, 5, 8
SYMBOLIC = {0: ("B", H, "S", D), 1: ("B", H, "T", D), 2: ("B", H, "T", D)}
HEADS = {"q_num_heads": H, "kv_num_heads": G}


def heads(query: int = H, key: int = H, rows: int = S, keys: int = T) -> list[Array | None]:
    return [some(B, query, rows, D), some(B, key, keys, D), some(B, key, keys, D) + 1]


def rows(*tensors: Array | None) -> list[Array | None]:
    """[B, rows, heads * size] of each."""
    return [None if x is None else x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1) for x in tensors]


@pytest.mark.parametrize("shapes", [{}, SYMBOLIC])
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}, {"is_causal": 1}, {"softcap": 2.0}])
def test_attention_is_one_launch_at_any_size(shapes: Any, attributes: Any) -> None:
    launches = check_native("Attention", heads(), shapes=shapes, **attributes)
    assert launches == ["scaled_attention"]


@pytest.mark.parametrize("mask", [some(S, T), some(B, 1, S, T), some(H, 1, T) > -1, np.ones(T, bool)])
def test_a_mask_of_any_rank_is_added_or_chooses(mask: Array) -> None:
    check_native("Attention", [*heads(key=G), mask], oracle=onnx_itself, opset=24)


def test_rows_of_heads_in_one_axis_are_taken_apart_and_put_together() -> None:
    launches = check_native("Attention", rows(*heads(key=G)), **HEADS)
    assert launches == ["transpose"] * 3 + ["scaled_attention", "transpose"]


@pytest.mark.parametrize("causal", [0, 1])
def test_a_past_comes_before_and_the_present_is_given(causal: int) -> None:
    past: list[Array | None] = [some(B, G, 2, D), some(B, G, 2, D)]
    shapes = {0: (B, H, "S", D), 1: (B, G, "S", D), 2: (B, G, "S", D), 4: (B, G, "P", D), 5: (B, G, "P", D)}
    inputs = [*heads(key=G, keys=S), None, *past]
    outputs = ("y", "key", "value")
    check_native("Attention", inputs, oracle=onnx_itself, outputs=outputs, shapes=shapes, is_causal=causal)


def test_a_present_without_a_past_is_what_was_given() -> None:
    check_native("Attention", heads(), outputs=("y", "key", "value"))


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_scores_are_given_as_they_were_at_any_point(mode: int) -> None:
    more = {"softcap": 3.0, "qk_matmul_output_mode": mode}
    inputs = [*heads(key=G), some(S, T)]
    check_native("Attention", inputs, oracle=onnx_itself, outputs=("y", "", "", "scores"), opset=24, **more)


@pytest.mark.parametrize("window", [(-1, -1), (1, -1), (1, 1), (0, 2)])
def test_lengths_and_windows_bound_what_is_seen(window: tuple[int, int]) -> None:
    inputs = [*heads(), some(S, T - 1), None, None, np.array([2, 4])]
    more = {"left_window_size": window[0], "right_window_size": window[1], "is_causal": 1}
    check_native("Attention", inputs, oracle=onnx_itself, opset=25, **more)


def test_a_query_that_sees_nothing_gives_0() -> None:
    mask = np.array([[True] * T, [False] * T, [True] * T])
    model = model_of("Attention", [*heads(), mask])
    _, (found,) = ours(model, [*heads(), mask])
    assert (found[:, :, 1] == 0).all()
    assert (found[:, :, ::2] != 0).all()


def test_halves_are_computed_in_float32() -> None:
    inputs = [None if x is None else x.astype(np.float16) for x in heads()]
    _, (found,) = ours(model_of("Attention", inputs), inputs)
    wide = [None if x is None else x.astype(np.float32) for x in inputs]
    (wanted,) = onnx_runtime(model_of("Attention", wide), wide)
    np.testing.assert_array_equal(found, wanted.astype(np.float16))


@pytest.mark.parametrize(
    ("inputs", "more"),
    [
        (heads(), {"softcap": 2.0, "outputs": ("y", "", "", "scores")}),
        (heads(), {"softmax_precision": 10}),
    ],
)
def test_what_is_not_certain_goes_to_onnx_runtime(inputs: list[Array | None], more: Any) -> None:
    check_island("Attention", inputs, tolerance=1e-2, **more)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("flat", [False, True])
def test_rotary_embedding_is_one_launch(interleaved: int, flat: bool) -> None:
    x = some(B, H, S, D)
    inputs = [*(rows(x) if flat else [x]), some(9, D // 2), some(9, D // 2), np.array([[0, 1, 2], [4, 5, 8]])]
    shapes = {0: (B, "S", H * D) if flat else (B, H, "S", D), 3: (B, "S")}
    more = {"num_heads": H} if flat else {}
    assert check_native("RotaryEmbedding", inputs, shapes=shapes, interleaved=interleaved, **more) == ["rotate"]


def test_part_of_a_row_is_turned_by_angles_of_its_own() -> None:
    inputs = [some(B, H, S, D), some(B, S, 2), some(B, S, 2)]
    check_native("RotaryEmbedding", inputs, oracle=onnx_itself, rotary_embedding_dim=4)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention_keeps_a_state(rule: str) -> None:
    query, key, value = rows(some(B, H, S, D), some(B, G, S, D), some(B, G, S, 4))
    decay = some(B, S, G) - 2 if "gated" in rule else None
    rate = some(B, S, 1) if "delta" in rule else None
    inputs = [query, key, value, some(B, G, D, 4), decay, rate]
    shapes = {i: (B, "S", *x.shape[2:]) for i, x in enumerate(inputs) if x is not None and i != 3}
    more: Any = {"outputs": ("y", "state"), "opset": 27, "update_rule": rule, **HEADS}
    check_native("LinearAttention", inputs, oracle=onnx_itself, shapes=shapes, **more)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("past", [None, some(B, 6, 3)])
def test_a_causal_convolution_goes_on_from_its_state(activation: str, past: Array | None) -> None:
    inputs = [some(B, 6, S), some(6, 1, 4), some(6), past]
    shapes = {0: (B, 6, "S")}
    more: Any = {"outputs": ("y", "state"), "opset": 27, "activation": activation}
    assert check_native("CausalConvWithState", inputs, oracle=onnx_itself, shapes=shapes, **more) == ["causal_conv"]


@pytest.mark.parametrize(("mode", "places"), [("linear", [0, 2]), ("circular", [4, 9]), ("linear", None)])
def test_new_rows_are_written_where_they_belong(mode: str, places: list[int] | None) -> None:
    inputs = [some(B, H, T, D), some(B, H, S, D), None if places is None else np.array(places)]
    check_native("TensorScatter", inputs, oracle=onnx_itself, opset=24, shapes={1: (B, H, "S", D)}, mode=mode)
