"""Which products, norms and attentions of functions are compared with what their ops mean?"""

from __future__ import annotations

from typing import Any

from tests.tensor_cases import BF16, BOOL, F16, F32, Case, Given

PLAIN = {"transpose_a": False, "transpose_b": False, "alpha": 1.0, "beta": 1.0}
GELU = "mul(mul(float16:0.5, add(x0, x2)), add(float16:1.0, erf(mul(add(x0, x2), float16:0.7071067811865476))))"
LEAST = (-3.4e38, -3.4e38)
"""What exporters mask with, where no key may be seen."""
ROWS = ({"a": 1, "b": 5}, {"a": 17, "b": 64}, {"a": 0, "b": 3})
LONG = ({"b": 1}, {"b": 40}, {"b": 64})


def matmul(
    name: str, a: Given, b: Given, *more: Given, sizes: Any = ({},), device: bool = False, **changed: Any
) -> Case:
    return Case(f"matmul {name}", "matmul", (a, b, *more), {**PLAIN, **changed}, sizes=sizes, device=device)


def mapped(
    name: str, expression: str, *inputs: Given, sizes: Any = ({},), device: bool = False, **changed: Any
) -> Case:
    attributes = {"transpose_a": False, "transpose_b": False, **changed, "expression": expression}
    return Case(f"matmul_map {name}", "matmul_map", inputs, attributes, sizes=sizes, device=device)


def norm(name: str, expression: str, *inputs: Given, sizes: Any = ROWS, results: int = 1, **changed: Any) -> Case:
    dtype = str(inputs[0].dtype).removeprefix("torch.")
    attributes: dict[str, Any] = {"parts": False, "epsilon": 1e-5, "center": True, **changed}
    claimed = tuple(Given(inputs[0].dtype, inputs[2].shape) for _ in range(results))
    attributes |= {"expression": expression, "dtype": dtype}
    return Case(f"norm_map {name}", "norm_map", inputs, attributes, results=claimed, sizes=sizes)


def rows(name: str, *inputs: Given, sizes: Any = LONG, device: bool = False, **changed: Any) -> Case:
    attributes: dict[str, Any] = {
        "heads": 2,
        "groups": 2,
        "size": 16,
        "columns": (0, 0, 0),
        "scale": 0.25,
        "causal": False,
        "guarded": True,
    }
    return Case(f"attention_rows {name}", "attention_rows", inputs, attributes | changed, sizes=sizes, device=device)


def heads(name: str, *inputs: Given, sizes: Any = LONG, causal: bool = False) -> Case:
    attributes = {"scale": 0.25, "softcap": 0.0, "causal": causal, "left": -1, "right": -1, "scores": "product",
                  "computed": "float32"}  # fmt: skip
    return Case(f"scaled_attention {name}", "scaled_attention", inputs, attributes, sizes=sizes)


PRODUCTS = (
    matmul("of two matrices", Given(F16, ("a", 40)), Given(F16, (40, 24)), sizes=ROWS),
    matmul("in float32", Given(F32, (5, 33)), Given(F32, (33, 7))),
    matmul("in bfloat16", Given(BF16, ("a", 64)), Given(BF16, (64, 64)), sizes=ROWS, device=True),
    matmul("of rows of a batch", Given(F16, (2, "a", 64)), Given(F16, (64, 32)), sizes=ROWS),
    matmul("of batches", Given(F32, (3, "a", "b")), Given(F32, (3, "b", 9)), sizes=ROWS),
    matmul("of one left matrix", Given(F32, ("b", 8)), Given(F32, ("a", 8, 9)), sizes=ROWS),
    matmul("with a bias", Given(F16, ("a", 40)), Given(F16, (40, 24)), Given(F16, (24,)), sizes=ROWS, alpha=0.5,
           beta=2.0),
    matmul("turned", Given(F32, (40, "a")), Given(F32, (24, 40)), sizes=ROWS, transpose_a=True, transpose_b=True),
    matmul("of long rows", Given(F16, (20, 1000)), Given(F16, (1000, 130))),
    mapped("with an activation", GELU, Given(F16, ("a", 64)), Given(F16, (64, 96)), Given(F16, (96,)), sizes=ROWS,
           device=True),
    mapped("with rows beside", "add(add(x0, x2), x3)", Given(F16, ("a", 64)), Given(F16, (96, 64)),
           Given(F16, ("a", 96)),
           Given(F16, (96,)), sizes=ROWS, transpose_b=True),
    mapped("with a mask of a batch", "add(mul(x0, float32:0.25), x2)", Given(F32, (2, 3, "a", 16)),
           Given(F32, (2, 3, 16, "b")),
           Given(F32, (1, 1, "a", "b")), sizes=ROWS),
    mapped("with a row beside a batch", "add(x0, x2)", Given(F32, ("a", 4, 8)), Given(F32, ("a", 8, 9)),
           Given(F32, (9,)), sizes=ROWS),
    mapped("to truths", "gt(x0, x2)", Given(F32, ("a", 16)), Given(F32, (16, 24)), Given(F32, ()), sizes=ROWS),
    norm("of a sum", "add(x2, x3)", Given(F16, (48,)), Given(F16, (48,)), Given(F16, ("a", 48)), Given(F16, ("a", 48)),
         results=2),
    norm("without a mean", "x2", Given(F32, (33,)), Given(F32, (33,)), Given(F32, ("a", 2, 33)), center=False),
    norm("of a row", "add(x2, x3)", Given(F32, (768,)), Given(F32, (768,)), Given(F32, ("a", 768)), Given(F32, (768,))),
    Case("layer_norm of two axes", "layer_norm", (Given(F32, ("a", 4, 8)), Given(F32, (4, 8)), Given(F32, (4, 8))),
         {"axis": 1, "epsilon": 1e-5, "center": True}, sizes=ROWS),
    Case("layer_norm without a bias", "layer_norm", (Given(F16, ("a", 40)), Given(F16, (40,))),
         {"axis": -1, "epsilon": 1e-5, "center": True}, sizes=ROWS),
    rows("of one buffer", *[Given(F16, (2, "b", 96))] * 3, columns=(0, 32, 64)),
    rows("with truths", *[Given(F32, (1, "b", 32))] * 3, Given(BOOL, (1, 1, "b", "b"))),
    rows("with numbers added", *[Given(F16, (2, "b", 32))] * 3, Given(F16, (2, 1, 1, "b")), guarded=False),
    rows("masked with the least number", *[Given(F32, (1, "b", 32))] * 3, Given(F32, (1, 1, "b", "b"), LEAST),
         guarded=False),
    rows("without a key", Given(F32, (2, 5, 32)), *[Given(F32, (2, "b", 32))] * 2, sizes=({"b": 0},), guarded=False),
    rows("of other keys", Given(F32, (2, 5, 32)), Given(F32, (2, "b", 32)), Given(F32, (2, "b", 32))),
    rows("of shared heads", Given(F16, (1, "b", 64)), Given(F16, (1, "b", 32)), Given(F16, (1, "b", 32)), heads=4),
    rows("that look back", *[Given(F16, (2, "b", 32))] * 3, causal=True),
    rows("in bfloat16", *[Given(BF16, (1, "b", 32))] * 3, device=True),
    heads("of heads", *[Given(F16, (2, 3, "b", 24))] * 3),
    heads("that looks back", *[Given(F32, (1, 2, "b", 16))] * 3, causal=True),
    heads("with a mask", *[Given(F32, (1, 2, "b", 16))] * 3, Given(BOOL, ("b", "b"))),
    heads("with a mask of one key", Given(F32, (1, 2, "b", 16)), *[Given(F32, (1, 2, 5, 16))] * 2,
          Given(BOOL, ("b", 1))),
    heads("with a mask of some keys", Given(F32, (1, 2, 4, 16)), *[Given(F32, (1, 2, 5, 16))] * 2, Given(F32, (4, 3))),
)  # fmt: skip
PARTS = Case(
    "matmul_parts", "matmul_parts", (Given(F16, ("a", 300)), Given(F16, (300, 40))),
    {"transpose_b": False, "parts": 3}, sizes=ROWS, summed=True,
)  # fmt: skip
SUMMED = Case(
    "norm_map of parts", "norm_map",
    (Given(F16, (40,)), Given(F16, (40,)), Given(F32, (3, "a", 40)), Given(F16, ("a", 40))),
    {"expression": "add(x2, x3)", "dtype": "float16", "parts": True, "epsilon": 1e-5, "center": True},
    sizes=ROWS,
)  # fmt: skip
CASES = (*PRODUCTS, PARTS, SUMMED)
