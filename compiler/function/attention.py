"""Which ONNX nodes are attention, or prepare it: rows that read other rows, rotation, caches, recurrent states?"""

from __future__ import annotations

import math

import onnx_ir as ir

from hjgc.compiler.function.lowering import Lowering, lowers
from hjgc.compiler.program import Tensor
from hjgc.plan_format import dims
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.scaled_attention import SCORES
from hjgc.plan_format.ops.shapes import axis_of
from hjgc.plan_format.sizes import Expression

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@lowers("Attention")
def _attention(node: Lowering) -> None:
    query, key, value = (
        x if len(x.shape) == 4 else by_heads(node, x, name)
        for x, name in zip(map(node.x, range(3)), ("q_num_heads", "kv_num_heads", "kv_num_heads"), strict=True)
    )
    past_key, past_value = node.optional(4), node.optional(5)
    if past_key is not None and past_value is not None:
        key = node.emit("concat", [past_key, key], {"axis": 2})
        value = node.emit("concat", [past_value, value], {"axis": 2})
    elif past_key is not None or past_value is not None:
        raise node.refuse("it has keys or values of before, not both")
    inputs = [query, key, value, _mask(node, key), node.optional(6), past_key]
    wanted = _results(node, query, key, value)
    made = node.emit_all("scaled_attention", inputs, _attention_attributes(node, query), wanted)
    node.give(in_rows(node, made[0]) if len(node.x(0).shape) == 3 else made[0])
    for index, result in ((1, key), (2, value), (3, made[-1])):
        if node.wants(index):
            node.give(result, index)


def by_heads(node: Lowering, x: Tensor, attribute: str) -> Tensor:
    """[B, heads, rows, size], from [B, rows, heads * size]; the attribute says how many heads."""
    return node.emit("transpose", [_parted(node, x, attribute)], {"axes": (0, 2, 1, 3)})


def _parted(node: Lowering, x: Tensor, attribute: str) -> Tensor:
    """[B, rows, heads, size], from [B, rows, heads * size]."""
    batch, rows, columns = x.shape
    heads = node.integer(attribute, 0)
    size = dims.divide(columns, heads) if heads > 0 else None
    if size is None:
        raise node.refuse(f"expected {attribute} that divides its columns, found {heads}")
    return node.view(x, (batch, rows, heads, size))


def in_rows(node: Lowering, x: Tensor) -> Tensor:
    """[B, rows, heads * size], from [B, heads, rows, size]."""
    batch, heads, rows, size = x.shape
    moved = node.emit("transpose", [x], {"axes": (0, 2, 1, 3)})
    return node.view(moved, (batch, rows, dims.mul(heads, size)))


def _mask(node: Lowering, key: Tensor) -> Tensor | None:
    mask = node.optional(3)
    if mask is not None and node.version < 24 and tuple(mask.shape)[-1:] != (key.shape[2],):
        raise node.refuse("its mask covers other keys than there are")
    return mask


def _results(node: Lowering, query: Tensor, key: Tensor, value: Tensor) -> list[TensorType]:
    scores = TensorType(query.dtype, (*query.shape[:3], key.shape[2]))
    rows = TensorType(query.dtype, (*query.shape[:3], value.shape[3]))
    return [rows, scores] if node.wants(3) else [rows]


def _attention_attributes(node: Lowering, query: Tensor) -> dict[str, bool | int | float | str]:
    softcap, mode = max(0.0, node.number("softcap", 0.0)), node.integer("qk_matmul_output_mode", 0)
    if node.wants(3) and (mode not in range(len(SCORES)) or (mode == 0 and softcap)):
        raise node.refuse(f"its scores are those of mode {mode}, with a soft cap of {softcap}")
    precision = ir.DataType(node.integer("softmax_precision", ir.DataType.FLOAT))
    if precision in NARROW and query.dtype not in ("float16", "bfloat16"):
        raise node.refuse(f"its softmax is of {precision.name.lower()}, narrower than its operands")
    wide, scale = query.dtype == "float64" or precision == ir.DataType.DOUBLE, node.number("scale", 0.0)
    if "scale" in node.node.attributes and not scale:
        raise node.refuse("its scale is 0")
    return {
        "scale": scale or default_scale(node, query.shape[3]),
        "softcap": softcap,
        "causal": bool(node.integer("is_causal", 0)),
        "left": node.integer("left_window_size", -1),
        "right": node.integer("right_window_size", -1),
        "scores": SCORES[mode if node.wants(3) else 0],
        "computed": "float64" if wide else "float32",
    }


def default_scale(node: Lowering, size: Expression) -> float:
    if not isinstance(size, int) or size < 1:
        raise node.refuse("its scale depends on a size")
    return 1 / math.sqrt(size)


@lowers("RotaryEmbedding")
def _rotary(node: Lowering) -> None:
    x = node.x(0)
    rows = x if len(x.shape) == 4 else _parted(node, x, "num_heads")
    width = node.integer("rotary_embedding_dim", 0) or rows.shape[-1]
    if not isinstance(width, int):
        raise node.refuse("how much is turned depends on a size")
    attributes = {
        "width": width,
        "interleaved": bool(node.integer("interleaved", 0)),
        "heads_first": len(x.shape) == 4,
    }
    turned = node.emit("rotate", [rows, node.x(1), node.x(2), node.optional(3)], attributes)
    node.give(node.view(turned, x.shape))


RULES_OF_STATES = {
    "linear": (False, False),
    "gated": (True, False),
    "delta": (False, True),
    "gated_delta": (True, True),
}
"""By update rule: does the state decay, and is it corrected?"""


@lowers("LinearAttention")
def _linear_attention(node: Lowering) -> None:
    inputs = [node.x(0), node.x(1), node.x(2), *(node.optional(i) for i in (3, 4, 5))]
    rule = node.text("update_rule", "gated_delta")
    if RULES_OF_STATES.get(rule) != (node.has(4), node.has(5)):
        raise node.refuse(f"its operands are not those of {rule}")
    heads, groups = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    query, value = node.x(0), node.x(2)
    batch, rows, columns = query.shape
    size = dims.divide(columns, heads) if heads > 0 else None
    width = dims.divide(value.shape[-1], groups) if groups > 0 else None
    if size is None or width is None:
        raise node.refuse(f"expected numbers of heads that divide its columns, found {heads} and {groups}")
    scale = node.number("scale", 0.0) or default_scale(node, size)
    wanted = [
        TensorType(query.dtype, (batch, rows, dims.mul(width, heads))),
        TensorType(query.dtype, (batch, groups, size, width)),
    ]
    made = node.emit_all("linear_attention", inputs, {"heads": heads, "groups": groups, "scale": scale}, wanted)
    for index, result in enumerate(made):
        if node.wants(index):
            node.give(result, index)


@lowers("CausalConvWithState")
def _causal_conv(node: Lowering) -> None:
    activation = node.text("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise node.refuse(f"its activation is {activation}")
    x = node.x(0)
    inputs = [x, node.x(1), node.optional(2), node.optional(3)]
    types = [TensorType(x.dtype, tuple(x.shape))] * 2
    made = node.emit_all("causal_conv", inputs, {"silu": activation != "none"}, types)
    for index, result in enumerate(made):
        if node.wants(index):
            node.give(result, index)


@lowers("TensorScatter")
def _tensor_scatter(node: Lowering) -> None:
    x, mode = node.x(0), node.text("mode", "linear")
    if mode not in ("linear", "circular"):
        raise node.refuse(f"its mode is {mode}")
    attributes = {"axis": axis_of(node.integer("axis", -2), len(x.shape)), "circular": mode == "circular"}
    node.give(node.emit("write_rows", [x, node.x(1), node.optional(2)], attributes))
