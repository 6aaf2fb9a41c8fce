"""Which template, with which axes, does hjgc choose for a step of one row on a chip?

`MEASURED` is the shipped table: tiles that were fastest in a whole decode step on the chip that it names
(docs/benchmarks.md). Shapes and chips that are not in it follow a rule: about 32 numbers of the weight a thread, in
blocks of columns as wide as the row allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hjgc.compiler.kernels.declaration import Axes, AxisValue
from hjgc.plan_format.chips import has_pdl
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.structs import DTypes

NUMBERS_A_THREAD = 32
WARPS = 4
PROGRAMS_AHEAD = 128
"""Programs whose rows are called into the L2 cache by those that wait: about 2 MB. More delays the kernel before."""
ROWS_AHEAD = 64
LEAST_SHARE = 128
"""Rows of the cache that one program takes alone: sharing them out costs more than it saves."""

Dims = Mapping[str, int]
Tile = Mapping[str, AxisValue]

_STREAM: Tile = {"block": 1024, "unroll": False, "ahead": 128, "warps": 4}
MEASURED: Mapping[tuple[str, str, int, int], Tile] = {
    ("sm_90", "decode_attention_inputs", 12288, 4096): {**_STREAM, "rows": 1, "unroll": True, "ahead": 0},
    ("sm_90", "decode_linear", 4096, 4096): {**_STREAM, "rows": 2},
    ("sm_90", "decode_gated_linear", 11008, 4096): {**_STREAM, "rows": 1, "block": 4096},
    ("sm_90", "decode_linear", 4096, 11008): {**_STREAM, "rows": 1, "block": 2048, "unroll": True, "ahead": 192},
    ("sm_90", "vocabulary_logits", 32000, 4096): {**_STREAM, "rows": 2, "block": 4096, "ahead": 0},
    ("sm_90", "decode_attention_inputs", 2560, 2048): {**_STREAM, "rows": 2},
    ("sm_90", "decode_linear", 2048, 2048): {**_STREAM, "rows": 2},
    ("sm_90", "decode_gated_linear", 5632, 2048): {**_STREAM, "rows": 1},
    ("sm_90", "decode_linear", 2048, 5632): {**_STREAM, "rows": 2, "block": 2048, "ahead": 0},
}
"""By target, template, outputs and columns of the weight: LLaMA-2-7B's, then TinyLlama's (found by `hjgc tune`)."""


class NoTemplate(Exception):
    """No template runs this op."""


def choose_decode(
    op: str, dims: Dims, dtypes: DTypes, roles: Collection[str], target: str
) -> tuple[str, dict[str, AxisValue]]:
    """The name of the template and its axes for a launch of one row. `dims` holds the op's letters, `roles` the roles
    that have an operand. Raises NoTemplate."""
    if op not in _CHOICES:
        raise NoTemplate(op)
    axes = _CHOICES[op](dims, dtypes, roles, target)
    return DECODE_TEMPLATES[op], {**axes, "pdl": has_pdl(target)}


def scratch(op: str, axes: Axes) -> dict[str, tuple[DType, tuple[int, ...]]]:
    """The operands that a kernel needs besides what its op means, by role: element type and shape. `counters` must be
    zero before the first launch, and are zero after each."""
    match op:
        case "attention":
            heads, kv_heads, size = int(axes["heads"]), int(axes["kv_heads"]), int(axes["head_size"])
            # Of each head and share: its sums, its highest score and its weight.
            numbers = heads * int(axes["shares"]) * (size + 2)
            return {"partials": ("float32", (numbers,)), "counters": ("int32", (kv_heads,))}
        case "sample":
            return {"scores": ("float32", (int(axes["vocabulary"]),))}
        case _:
            return {}


def _embedding(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    del roles, target
    return {"columns": dims["H"], "block": 1024, "warps": WARPS, **_halves(dtypes)}


def _rotary_table(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    del dtypes, roles, target
    return {"columns": dims["F"], "warps": 2}


def _rms_norm(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    del roles, target
    return {"columns": dims["H"], "warps": 8 if dims["H"] > 1024 else WARPS, **_halves(dtypes)}


def _attention_inputs(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    shape: dict[str, AxisValue] = {
        **_cache(dims, dtypes),
        **ring(dims),
        "columns": dims["H"],
        "bias": "bias" in roles,
        "head_norm": "query_norm" in roles,
        **_halves(dtypes),
    }
    tile = _product(target, "decode_attention_inputs", dims["N"], dims["H"], 2)
    if "query_norm" in roles:
        # The program holds a whole head, so that its block must be narrow.
        tile |= {"block": 64, "unroll": False}
    return shape | tile


def _attention(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    del roles
    alone = dims["Q"] == dims["G"]
    shares = 8
    while shares * dims["G"] < 256 and shares < 32:
        shares *= 2
    ahead = ROWS_AHEAD if has_pdl(target) else 0
    tile = {"shares": shares, "least": LEAST_SHARE, "block": 64 if alone else 32, "ahead": ahead, "warps": WARPS}
    return {**_cache(dims, dtypes), **window(dims), "dtype": dtypes.compute, **tile}


def _linear(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    shape: dict[str, AxisValue] = {"outputs": dims["N"], "columns": dims["K"], **_halves(dtypes)}
    shape |= {"bias": "bias" in roles, "residual": "residual" in roles}
    return shape | _product(target, "decode_linear", dims["N"], dims["K"], 1)


def _gated_linear(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    shape: dict[str, AxisValue] = {"outputs": dims["F"], "columns": dims["H"], **_halves(dtypes)}
    shape["bias"] = "bias" in roles
    return shape | _product(target, "decode_gated_linear", dims["F"], dims["H"], 2)


def _vocabulary_logits(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    shape: dict[str, AxisValue] = {"outputs": dims["V"], "columns": dims["H"], **_halves(dtypes)}
    shape |= {"bias": "bias" in roles, "several": dims.get("M", 1) != 1, "logits_dtype": dtypes.logits}
    return shape | _product(target, "vocabulary_logits", dims["V"], dims["H"], 1)


def _sample(dims: Dims, dtypes: DTypes, roles: Collection[str], target: str) -> dict[str, AxisValue]:
    del roles, target
    return {"vocabulary": dims["V"], "block": 4096, "logits_dtype": dtypes.logits, "warps": 32}


def _product(target: str, template: str, outputs: int, columns: int, tiles: int) -> dict[str, AxisValue]:
    """The tile of a product: as measured, or by the rule. `tiles`: blocks of rows that a program reads side by side."""
    found = MEASURED.get((target, template, outputs, columns))
    if found is not None:
        return dict(found)
    block = 64
    while block * 2 <= min(columns, 2048):
        block *= 2
    rows = max(1, NUMBERS_A_THREAD * 32 * WARPS // (tiles * block))
    ahead = PROGRAMS_AHEAD if has_pdl(target) else 0
    return {"rows": min(rows, 8), "block": block, "unroll": False, "ahead": ahead, "warps": WARPS}


def _cache(dims: Dims, dtypes: DTypes) -> dict[str, AxisValue]:
    sizes = {"heads": dims["Q"], "kv_heads": dims["G"], "head_size": dims["D"], "capacity": dims["C"]}
    return {**sizes, "cache_dtype": dtypes.cache}


def ring(dims: Dims) -> dict[str, AxisValue]:
    """Whether positions go round in the cache."""
    return {"ring": bool(dims.get("ring", 0))}


def window(dims: Dims) -> dict[str, AxisValue]:
    """How many keys a query sees; 0 for all."""
    return {"window": dims.get("window", 0)}


def _halves(dtypes: DTypes) -> dict[str, AxisValue]:
    return {"dtype": dtypes.compute, "weight_dtype": dtypes.weights}


DECODE_TEMPLATES: Mapping[str, str] = {
    "embedding": "embedding",
    "rotary_table": "rotary_table",
    "rms_norm": "rms_norm",
    "attention_inputs": "decode_attention_inputs",
    "attention": "decode_attention",
    "linear": "decode_linear",
    "gated_linear": "decode_gated_linear",
    "vocabulary_logits": "vocabulary_logits",
    "sample": "sample",
}
_CHOICES = {
    "embedding": _embedding,
    "rotary_table": _rotary_table,
    "rms_norm": _rms_norm,
    "attention_inputs": _attention_inputs,
    "attention": _attention,
    "linear": _linear,
    "gated_linear": _gated_linear,
    "vocabulary_logits": _vocabulary_logits,
    "sample": _sample,
}
