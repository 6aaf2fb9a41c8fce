"""What does ONNX Runtime's own optimizer leave in a file: several of ONNX's nodes as one of `com.microsoft`?

Each is taken apart again, or is one launch of ours. What they mean: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hjgc.compiler.function.arithmetic import ACTIVATIONS, activation
from hjgc.compiler.function.attention import by_heads, default_scale, in_rows
from hjgc.compiler.function.filling import counted
from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.function.products import general_product, product
from hjgc.compiler.function.shapes import cut
from hjgc.compiler.function.windows import convolved
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.scaled_attention import SCORES
from hjgc.plan_format.ops.shapes import broadcast, numbers
from hjgc.plan_format.sizes import Expression, spell
from hjgc.plan_format.structs import Attribute

MICROSOFT = "com.microsoft"
FUNCTIONS = {"Tanh": "tanh(x0)", "Sigmoid": "sigmoid(x0)"}
EPSILON = 1e-12
"""Of norms that add a second operand first."""
FILTER = -10000.0
"""What is added to scores of keys that are not seen, if the node does not say."""
LOWEST = -65504.0
"""Of float16."""


@lowers("Gelu", "BiasGelu", "FastGelu", domain=MICROSOFT)
def _gelu(node: Lowering) -> None:
    inputs = [node.x(0), node.x(1)] if node.has(1) else [node.x(0)]
    approximate = "tanh" if node.node.op_type == "FastGelu" else "none"
    text = activation("Gelu", inputs[0].dtype, node.number, approximate)
    node.give(node.elementwise(text.replace("x0", "add(x0, x1)") if len(inputs) == 2 else text, *inputs))


@lowers("FusedMatMul", domain=MICROSOFT)
def _fused_product(node: Lowering) -> None:
    a, b = node.x(0), node.x(1)
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0) or min(len(a.shape), len(b.shape)) < 2:
        raise node.refuse("its batches are not where a product's are")
    turned = (bool(node.integer(name, 0)) for name in ("transA", "transB"))
    attributes = product(**dict(zip("ab", turned, strict=True)), alpha=node.number("alpha", 1.0))
    node.give(node.emit("matmul", [a, b], attributes))


@lowers("FusedGemm", domain=MICROSOFT)
def _fused_gemm(node: Lowering) -> None:
    node.give(_activated(node, general_product(node)))


@lowers("FusedConv", domain=MICROSOFT)
def _fused_conv(node: Lowering) -> None:
    y = convolved(node)
    y = node.elementwise("add(x0, x1)", y, node.x(3)) if node.has(3) else y
    node.give(_activated(node, y))


def _activated(node: Lowering, x: Tensor) -> Tensor:
    """Through the activation that the node names, if any; its parameters stand in attributes or in a list."""
    name = node.text("activation", "")
    if not name:
        return x
    if name in FUNCTIONS:
        return node.elementwise(FUNCTIONS[name], x)
    if name not in ACTIVATIONS:
        raise node.refuse(f"through {name}")
    listed = node.node.attributes.get_floats("activation_params", ())
    stated: dict[str, float] = dict(zip(("alpha", "beta", "gamma"), listed, strict=False))

    def parameter(word: str, default: float) -> float:
        return stated.get(word, node.number(f"activation_{word}", default))

    return node.elementwise(activation(name, x.dtype, parameter), x)


@lowers("SimplifiedLayerNormalization")
@lowers("SimplifiedLayerNormalization", domain=MICROSOFT)
def _simplified_norm(node: Lowering) -> None:
    if node.wants(1):
        raise node.refuse("its deviation is read")
    node.give(_norm(node, node.x(0), 1, center=False, epsilon=1e-5))


@lowers("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_norm(node: Lowering) -> None:
    """The norm of a sum, which is also a result."""
    centred = node.node.op_type == "SkipLayerNormalization"
    if node.wants(1) or node.wants(2):
        raise node.refuse("its moments are read")
    if tuple(node.x(0).shape) != broadcast([tuple(node.x(0).shape), tuple(node.x(1).shape)]):
        raise node.refuse("what is added is wider than its rows")
    bias = node.optional(4 if centred else 3)
    inputs = [node.x(0), node.x(1), *([] if bias is None else [bias])]
    total = node.elementwise("add(add(x0, x1), x2)" if len(inputs) == 3 else "add(x0, x1)", *inputs)
    if node.wants(3):
        node.give(total, 3)
    node.give(_norm(node, total, 2, center=centred))


def _norm(node: Lowering, x: Tensor, gain: int, *, center: bool = True, epsilon: float = EPSILON) -> Tensor:
    """Along the last axis; the gain is the operand of that number, the bias of one that is centred the next."""
    attributes: dict[str, Attribute] = {
        "axis": node.integer("axis", -1), "epsilon": node.number("epsilon", epsilon), "center": center
    }  # fmt: skip
    bias = node.optional(gain + 1) if center else None
    return node.emit("layer_norm", [x, node.x(gain), bias], attributes)


@lowers("EmbedLayerNormalization", domain=MICROSOFT)
def _embedding(node: Lowering) -> None:
    """The norm of rows of two or three tables added up."""
    ids, segments = node.x(0), node.optional(1)
    if node.wants(1):
        node.give(_lengths(node, ids), 1)
    rows = [node.emit("gather", [node.x(2), ids], {"axis": 0}), _positions(node, ids)]
    if segments is not None:
        rows.append(node.emit("gather", [node.x(4), segments], {"axis": 0}))
    elif node.has(4):  # all of the first
        rows.append(cut(node, node.x(4), (0, 0), (1, 1), (1, node.x(4).shape[1])))
    total = node.elementwise("add(add(x0, x1), x2)" if len(rows) == 3 else "add(x0, x1)", *rows)
    if node.wants(2):
        node.give(total, 2)
    node.give(_norm(node, total, 5))


def _lengths(node: Lowering, ids: Tensor) -> Tensor:
    """How many ones the mask of each sequence has; 0 without one."""
    if node.has(7):
        ones = node.elementwise("cast.int32(eq(x0, int32:1))", node.x(7))
        return node.emit("reduce", [ones], {"kind": "sum", "axes": (1,), "keep": False})
    return node.emit("fill", [], {"value": "int32:0"}, [TensorType("int32", (ids.shape[0],))])


def _positions(node: Lowering, ids: Tensor) -> Tensor:
    """Rows of the table of positions: those that are named, or the first ones."""
    table = node.x(3)
    if node.has(8):
        return node.emit("gather", [table, node.x(8)], {"axis": 0})
    return cut(node, table, (0, 0), (1, 1), (ids.shape[1], table.shape[1]))


@lowers("Attention", domain=MICROSOFT)
def _attention(node: Lowering) -> None:
    """Of rows: the products for queries, keys and values are its own."""
    x, weight = node.x(0), node.x(1)
    if node.has(4) or node.has(6) or node.wants(1):
        raise node.refuse("it has keys of before")
    each = dims.divide(weight.shape[-1], 3)
    widths = node.integers("qkv_hidden_sizes") or (each, each, each)
    made = node.emit("matmul", [x, weight, node.optional(2)], product())
    node.give(_attended(node, _columns(node, made, widths), node.optional(3), node.optional(5)))


@lowers("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(node: Lowering) -> None:
    parts = [node.x(i) for i in range(3)]
    if any(map(node.has, range(6, node.count))) or any(map(node.wants, (1, 2, 3))):
        raise node.refuse("it has keys of before, or gives what it computed on its way")
    bias = node.optional(3)
    if bias is not None:
        biases = _columns(node, bias, [part.shape[-1] for part in parts])
        parts = [node.elementwise("add(x0, x1)", *pair) for pair in zip(parts, biases, strict=True)]
    node.give(_attended(node, parts, node.optional(4), node.optional(5)))


def _columns(node: Lowering, x: Tensor, widths: Sequence[Expression | None]) -> list[Tensor]:
    """Columns side by side, so many each."""
    whole = numbers([width for width in widths if width is not None])
    if whole is None or len(whole) != 3 or sum(whole) != x.shape[-1]:
        raise node.refuse(f"expected {spell(x.shape[-1])} columns in three parts, found others")
    before = [0] * (len(x.shape) - 1)
    steps = [1] * len(x.shape)
    starts = accumulate(whole[:2], initial=0)
    return [cut(node, x, [*before, start], steps, [*x.shape[:-1], width])
            for start, width in zip(starts, whole, strict=True)]  # fmt: skip


def _attended(node: Lowering, parts: Sequence[Tensor], seen: Tensor | None, bias: Tensor | None) -> Tensor:
    """Queries, keys and values [B, rows, heads * size], with keys that are not seen and what is added to scores."""
    if node.integer("do_rotary", 0) or any(len(part.shape) != 3 for part in parts):
        raise node.refuse("its rows are turned, or packed")
    query, key, value = (by_heads(node, part, "num_heads") for part in parts)
    if seen is not None:
        mask = _mask(node, seen, key)
        bias = mask if bias is None else node.elementwise("add(x0, x1)", mask, bias)
    causal = bool(node.integer("unidirectional", 0))
    if causal and (seen is not None or query.shape[2] != key.shape[2]):
        raise node.refuse("its rows see keys by their place and by a mask, or others than their own")
    attributes: dict[str, Attribute] = {
        "scale": node.number("scale", 0.0) or default_scale(node, query.shape[3]), "softcap": 0.0, "causal": causal,
        "left": -1, "right": -1, "scores": SCORES[0], "computed": "float64" if query.dtype == "float64" else "float32",
    }  # fmt: skip
    return in_rows(node, node.emit("scaled_attention", [query, key, value, bias], attributes))


def _mask(node: Lowering, seen: Tensor, key: Tensor) -> Tensor:
    """What is added to scores. `seen`: how many keys each sequence has, or of keys whether they are seen, for all
    queries or for each."""
    batch, keys = key.shape[0], key.shape[2]
    least = node.number("mask_filter_value", FILTER)
    least = max(LOWEST, least) if key.dtype == "float16" else least
    shut, zero = (node.scalar(key.dtype, x) for x in (least, 0))
    if tuple(seen.shape) == (batch,):
        places = counted(node, keys, seen.dtype)
        added = node.elementwise(f"where(lt(x0, x1), {zero}, {shut})", places, node.view(seen, (batch, 1)))
        return node.view(added, (batch, 1, 1, keys))
    if len(seen.shape) not in (2, 3) or (seen.shape[0], seen.shape[-1]) != (batch, keys):
        raise node.refuse("its mask is none of keys")
    rows = seen.shape[1] if len(seen.shape) == 3 else 1
    added = node.elementwise(f"where(gt(x0, {node.scalar(seen.dtype, 0)}), {zero}, {shut})", seen)
    return node.view(added, (batch, 1, rows, keys))
