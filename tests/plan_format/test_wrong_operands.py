"""Does an op that reads tensors refuse those that do not fit, in words?"""

from __future__ import annotations

from typing import Any

import pytest

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.sizes import Expression, Size


def t(*shape: Expression, dtype: DType = "float32") -> TensorType:
    return TensorType(dtype, shape)


N, M = Size("N"), Size("M")
PLACES = {"causal": False, "left": -1, "right": -1}
ATTENTION = {"scale": 1.0, "softcap": 0.0, "scores": "product", "computed": "float32", **PLACES}
QUERY, KEY = t(2, 4, N, 8), t(2, 2, M, 8)
ROTATE = {"width": 8, "interleaved": False, "heads_first": True}
ARG = {"kind": "max", "axis": 0, "keep": True, "last": False}
TOP = {"axis": 0, "largest": True}
CUMULATE = {"kind": "sum", "axis": 0, "exclusive": False, "reverse": False}
LOSS = {"reduction": "none", "ignored": ()}
NORM = {"size": 3, "alpha": 1.0, "beta": 1.0, "bias": 1.0}
LINEAR = {"heads": 4, "groups": 2, "scale": 1.0}
ROWS = {"axis": 1, "circular": False}

WRONG = [
    ("scaled_attention", [QUERY, KEY], ATTENTION, "keys and values"),
    ("scaled_attention", [QUERY, KEY, t(2, 2, M, 8, dtype="float16")], ATTENTION, "one floating-point type"),
    ("scaled_attention", [t(4, N, 8), KEY, KEY], ATTENTION, "four axes"),
    ("scaled_attention", [t(2, 3, N, 8), KEY, KEY], ATTENTION, "that fit"),
    ("scaled_attention", [QUERY, KEY, t(2, 2, N, 8)], ATTENTION, "that fit"),
    ("scaled_attention", [QUERY, KEY, KEY, t(N, N)], ATTENTION, "a mask"),
    ("scaled_attention", [QUERY, KEY, KEY, t(3, 1, 1, M)], ATTENTION, "axes that are equal"),
    ("scaled_attention", [QUERY, KEY, KEY, t(M, dtype="int32")], ATTENTION, "a mask"),
    ("scaled_attention", [QUERY, KEY, KEY, None, t(3, dtype="int64")], ATTENTION, "one int64 a sequence"),
    ("scaled_attention", [QUERY, KEY, KEY, None, t(2, dtype="int64"), KEY], ATTENTION, "no keys before"),
    ("scaled_attention", [QUERY, KEY, KEY], ATTENTION | {"scores": "all"}, "expected one of"),
    ("rotate", [t(2, 4, N, 8), t(9, 4)], ROTATE, "cosines and sines"),
    ("rotate", [t(2, 4, N, 8), t(2, N, 4), t(2, M, 4)], ROTATE, "cosines and sines"),
    ("rotate", [t(2, 4, N, 8), t(2, N, 5), t(2, N, 5)], ROTATE | {"width": 10}, "an even number of at most 8"),
    ("rotate", [t(2, 4, N, 8), t(9, 4), t(9, 4), t(2, M, dtype="int64")], ROTATE, "a position for each row"),
    ("arg_reduce", [t(3, dtype="bool")], ARG, "max or min of numbers"),
    ("arg_reduce", [t(0, 3)], ARG, "numbers along axis 0"),
    ("arg_reduce", [t(3)], ARG | {"axis": 1}, "an axis of 1"),
    ("hardmax", [t(3, dtype="int32")], {"axis": 0}, "a floating-point type"),
    ("cumulate", [t(3, dtype="uint8")], CUMULATE, "numbers"),
    ("cumulate", [t(3)], CUMULATE | {"kind": "max"}, "sum or prod"),
    ("cumulate", [t(3), t(2, dtype="int64")], CUMULATE, "one whole number"),
    ("triangle", [t(3)], {"upper": True}, "matrices"),
    ("triangle", [t(3, 3), t(dtype="int32")], {"upper": True}, "one int64"),
    ("determinant", [t(3, 4)], {}, "square matrices"),
    ("determinant", [t(N, M)], {}, "square matrices"),
    ("class_loss", [t(N), t(N, dtype="int64")], LOSS, "logarithms"),
    ("class_loss", [t(N, 5), t(M, dtype="int64")], LOSS, "a class for each place"),
    ("class_loss", [t(N, 5), t(N, dtype="int64"), t(4)], LOSS, "a weight for each class"),
    ("class_loss", [t(N, 5), t(N, dtype="int64")], LOSS | {"reduction": "max"}, "none, sum or mean"),
    ("neighbour_norm", [t(N, 3)], NORM | {"size": 0}, "a size over 0"),
    ("integer_matmul", [t(2, 3), t(3, 2, dtype="int8")], {}, "matrices of bytes"),
    ("integer_matmul", [t(2, 3, dtype="int8"), t(2, 3, dtype="int8")], {}, "as many columns as rows"),
    ("integer_matmul", [t(2, 3, dtype="int8"), t(3, 2, dtype="int8"), t(dtype="uint8")], {}, "zero points that fit"),
    ("integer_matmul", [t(2, 1 << 16, dtype="int8"), t(1 << 16, 2, dtype="int8")], {}, "sums that int32 holds"),
    ("linear_attention", [t(2, N, 33), t(2, N, 16), t(2, N, 8)], LINEAR, "that fit"),
    ("linear_attention", [t(2, N, 32), t(2, N, 16), t(2, N, 8)], LINEAR | {"heads": 3}, "a multiple of 2 heads"),
    ("linear_attention", [t(2, N, 32), t(2, N, 16), t(2, N, 8), t(2, 2, 4, 8)], LINEAR, "a state like"),
    ("linear_attention", [t(2, N, 32), t(2, N, 16), t(2, N, 8), None, t(2, N, 3)], LINEAR, "a decay"),
    ("linear_attention", [t(2, N, 32), t(2, N, 16), t(2, N, 8), None, None, t(2, N, 4)], LINEAR, "a rate"),
    ("causal_conv", [t(2, 6, N), t(5, 1, 4)], {"silu": False}, "a filter for each channel"),
    ("causal_conv", [t(2, 6, N), t(6, 1, 4), t(5)], {"silu": False}, "a bias for each channel"),
    ("causal_conv", [t(2, 6, N), t(6, 1, 4), None, t(2, 6, 4)], {"silu": False}, "from before"),
    ("write_rows", [t(2, N, 8), t(2, M, 8)], ROWS | {"axis": 0}, "an axis behind the first"),
    ("write_rows", [t(2, N, 8), t(2, M, 9)], ROWS, "what fits into"),
    ("write_rows", [t(2, N, 8), t(2, M, 8), t(3, dtype="int64")], ROWS, "an int64 for each sequence"),
]


@pytest.mark.parametrize(("name", "inputs", "attributes", "words"), WRONG)
def test_operands_that_do_not_fit_are_refused(
    name: str, inputs: list[TensorType | None], attributes: dict[str, Any], words: str
) -> None:
    infer = all_ops()[name].infer
    assert infer is not None
    with pytest.raises(ValueError, match=words):
        infer(inputs, [], attributes)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([t(2)], "numbers and indices"),
        ([t(4), t(4, dtype="int64")], "at most 3 numbers"),
        ([t(-1), t(-1, dtype="int64")], "at most 3 numbers"),
    ],
)
def test_top_k_gives_no_more_than_there_are(outputs: list[TensorType], words: str) -> None:
    infer = all_ops()["top_k"].infer
    assert infer is not None
    with pytest.raises(ValueError, match=words):
        infer([t(3)], outputs, TOP)


def test_what_fits_is_typed() -> None:
    infer = all_ops()["scaled_attention"].infer
    assert infer is not None
    wanted = [t(2, 4, N, 8), t(2, 4, N, M)]
    assert list(infer([QUERY, KEY, KEY, t(N, M, dtype="bool")], wanted, ATTENTION)) == wanted
