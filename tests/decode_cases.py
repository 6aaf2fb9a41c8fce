"""Which calls of the decode kernels are compared with what their ops mean, and how close must they come?

A case is one launch of one template: its axes, its operands as torch tensors, the fields of the parameter block, and
the op's attributes. `expected` is the op's reference in float32 on the same half-precision inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import Axes
from hjgc.compiler.kernels.tiles import scratch
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import parameter_block

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-15}
"""Twice the unit in the last place: the result is rounded once."""
GREEDY: dict[str, int | float] = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Case:
    name: str
    template: str
    axes: Mapping[str, bool | int | str]
    operands: Mapping[str, torch.Tensor]
    fields: Mapping[str, int | float]
    attributes: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def op(self) -> str:
        return template(self.template).op


def written(case: Case) -> list[str]:
    """The roles whose contents the op defines, in the op's order."""
    roles = all_ops()[case.op].roles
    scratch = ("partials", "scores", "parameters")
    return [role.name for role in roles if role.access != "read" and role.name not in scratch]


def grid(case: Case) -> tuple[int, int, int]:
    letters: dict[str, int] = {}
    for role in all_ops()[case.op].roles:
        if role.name in case.operands:
            letters |= dict(zip(role.axes, case.operands[role.name].shape, strict=True))
    return template(case.template).grid(letters, case.axes)  # type: ignore[return-value]


def expected(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, int | float]]:
    """What each written role and each field must hold after the call."""
    op = all_ops()[case.op]
    wide = {n: t.float() if t.is_floating_point() else t.clone() for n, t in case.operands.items()}
    fields = SimpleNamespace(**case.fields)
    given = [fields if role.dtype == "parameters" else wide.get(role.name) for role in op.roles]
    op.reference(*given, **case.attributes)
    return {name: wide[name] for name in written(case) if name in wide}, vars(fields)


def assert_close(case: Case, found: Mapping[str, torch.Tensor]) -> None:
    for name, right in expected(case)[0].items():
        result = found[name]
        assert torch.isfinite(result.float()).all(), f"{case.name}: {name} is not finite everywhere"
        if not result.is_floating_point():
            assert torch.equal(result, right), f"{case.name}: {name}"
            continue
        error = (result.float() - right).abs()
        allowed = ROUNDING[result.dtype] * right.abs() + _summing(case, result.dtype) * right.abs().max()
        worst = (error - allowed).max().item()
        assert worst <= 0, f"{case.name}: {name} is {worst} further off than allowed"


def _summing(case: Case, dtype: torch.dtype) -> float:
    """What may be lost on the way: sums in float32, but tensor cores take the softmax's weights in half precision."""
    grouped = case.template == "decode_attention" and case.axes["heads"] != case.axes["kv_heads"]
    return ROUNDING[dtype] if grouped else 2e-5


class Draw:
    """Random tensors of one dtype, the same every time."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype, self._generator = TORCH[dtype], torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(dtype or self.dtype)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """What nobody has written yet: NaN."""
        return torch.full(shape, float("nan"), dtype=dtype or self.dtype)


PRODUCT: Axes = {"unroll": True}
COMMON: Axes = {"ahead": 0, "warps": 4, "pdl": False}


def fields(start: int, length: int = 1, **sampling: int | float) -> dict[str, int | float]:
    zeros: dict[str, int | float] = {entry.name: 0 for entry in parameter_block().fields}
    return {**zeros, **GREEDY, "start": start, "length": length, **sampling}


def linear(n: int, k: int, dtype: str, *, rows: int, block: int, bias: bool = False, residual: bool = True) -> Case:
    draw = Draw(dtype, n + k)
    operands = {"x": draw(1, k), "weight": draw(n, k, scale=k**-0.5), "y": draw.empty(1, n)}
    operands |= {"bias": draw(n)} if bias else {}
    operands |= {"residual": draw(1, n)} if residual else {}
    axes = {"outputs": n, "columns": k, "bias": bias, "residual": residual, "rows": rows, "block": block}
    name = f"linear {n}x{k} {dtype} {rows}x{block}{' bias' * bias}{' residual' * residual}"
    return Case(name, "decode_linear", {**COMMON, **PRODUCT, **axes, **_dtypes(dtype)}, operands, fields(3))


def gated_linear(f: int, k: int, dtype: str, *, rows: int, block: int, bias: bool = False) -> Case:
    draw = Draw(dtype, f + k)
    operands = {"x": draw(1, k), "norm_weight": draw(k), "weight": draw(2 * f, k, scale=k**-0.5)}
    operands |= {"bias": draw(2 * f)} if bias else {}
    operands["y"] = draw.empty(1, f)
    axes = {"outputs": f, "columns": k, "bias": bias, "rows": rows, "block": block}
    name = f"gated {f}x{k} {dtype} {rows}x{block}{' bias' * bias}"
    return Case(
        name,
        "decode_gated_linear",
        {**COMMON, **PRODUCT, **axes, **_dtypes(dtype)},
        operands,
        fields(3),
        {"epsilon": 1e-5},
    )


def vocabulary_logits(
    v: int, k: int, dtype: str, *, rows: int, block: int, length: int = 1, bias: bool = False
) -> Case:
    draw = Draw(dtype, v + k)
    operands = {"x": draw(length, k), "norm_weight": draw(k), "weight": draw(v, k, scale=k**-0.5)}
    operands |= {"bias": draw(v)} if bias else {}
    operands["logits"] = draw.empty(1, v, dtype=torch.float32)
    axes = {"outputs": v, "columns": k, "several": length > 1, "bias": bias, "rows": rows, "block": block}
    dtypes = {**_dtypes(dtype), "logits_dtype": "float32"}
    name = f"logits {v}x{k} {dtype} {rows}x{block} of {length}"
    parameters = fields(3, length)
    return Case(
        name, "vocabulary_logits", {**COMMON, **PRODUCT, **axes, **dtypes}, operands, parameters, {"epsilon": 1e-5}
    )


def attention_inputs(
    heads: int, kv_heads: int, size: int, k: int, dtype: str, *, rows: int, block: int, start: int = 5,
    bias: bool = False, norm: bool = False, ring: bool = False,
) -> Case:  # fmt: skip
    draw, capacity = Draw(dtype, heads + size), 9
    n = (heads + 2 * kv_heads) * size
    operands = {"x": draw(1, k), "norm_weight": draw(k), "weight": draw(n, k, scale=k**-0.5)}
    operands |= {"bias": draw(n)} if bias else {}
    operands |= {"query_norm": draw(size), "key_norm": draw(size)} if norm else {}
    angles = torch.randn(1, size // 2, generator=torch.Generator().manual_seed(1))
    operands |= {"cos": angles.cos(), "sin": angles.sin(), "query": draw.empty(1, heads, size)}
    operands |= {name: draw(kv_heads, capacity, size) for name in ("key_cache", "value_cache")}
    axes = {"heads": heads, "kv_heads": kv_heads, "head_size": size, "capacity": capacity, "columns": k}
    axes |= {"bias": bias, "head_norm": norm, "ring": ring, "rows": rows, "block": block}
    dtypes = {**_dtypes(dtype), "cache_dtype": dtype}
    flags = " bias" * bias + " norm" * norm + " ring" * ring
    name = f"inputs {heads}/{kv_heads}x{size} of {k} {dtype} {rows}x{block}{flags}"
    attributes = {"epsilon": 1e-5, "head_norm_epsilon": 1e-6, "ring": ring}
    return Case(
        name, "decode_attention_inputs", {**COMMON, **PRODUCT, **axes, **dtypes}, operands, fields(start), attributes
    )


def attention(
    heads: int, kv_heads: int, size: int, start: int, dtype: str, *, shares: int = 8, least: int = 64, block: int = 32,
    capacity: int = 0, window: int = 0,
) -> Case:  # fmt: skip
    draw, capacity = Draw(dtype, heads + start), capacity or start + 3
    operands = {"query": draw(1, heads, size), "y": draw.empty(1, heads * size)}
    operands |= {name: draw(kv_heads, capacity, size) for name in ("key_cache", "value_cache")}
    seen = {p % capacity for p in range(max(0, start + 1 - window) if window else 0, start + 1)}
    for name in ("key_cache", "value_cache"):  # rows that nobody has written, or that nobody may see
        operands[name][:, [row for row in range(capacity) if row not in seen]] = float("nan")
    axes = {"heads": heads, "kv_heads": kv_heads, "head_size": size, "capacity": capacity, "shares": shares}
    axes |= {"window": window, "least": least, "block": block, "dtype": dtype, "cache_dtype": dtype}
    (_, numbers), (_, counters) = scratch("attention", axes).values()
    operands |= {"partials": draw.empty(*numbers, dtype=torch.float32), "counters": torch.zeros(counters).int()}
    name = f"attention {heads}/{kv_heads}x{size} at {start} {dtype} {shares} shares of {least} by {block}"
    name += f", {window} of {capacity} rows" if window else ""
    attributes = {"scale": size**-0.5, "window": window}
    return Case(name, "decode_attention", {**COMMON, **axes}, operands, fields(start), attributes)


def embedding(rows: int, columns: int, dtype: str, start: int = 4) -> Case:
    draw = Draw(dtype)
    tokens = torch.randint(0, 50, (start + rows + 2,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    operands = {"history": tokens, "table": draw(50, columns), "y": draw.empty(rows, columns)}
    axes: Axes = {"columns": columns, "block": 1024, "warps": 4, "pdl": False, **_dtypes(dtype)}
    return Case(f"embedding {rows}x{columns} {dtype}", "embedding", axes, operands, fields(start, rows))


def rotary_table(rows: int, half: int, start: int) -> Case:
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    operands = {"inverse_frequencies": frequencies}
    operands |= {name: torch.full((rows, half), float("nan")) for name in ("cos", "sin")}
    axes: Axes = {"columns": half, "warps": 1, "pdl": False}
    return Case(f"rotary {rows}x{half} from {start}", "rotary_table", axes, operands, fields(start, rows))


def sample(
    vocabulary: int, start: int = 20, *, block: int = 1024, warps: int = 4, spread: float = 2.0, **sampling: int | float
) -> Case:
    generator = torch.Generator().manual_seed(vocabulary + start)
    # Rounded, so that equal scores are met.
    logits = (torch.randn(1, vocabulary, generator=generator) * spread * 8).round() / 8
    history = torch.randint(0, vocabulary, (start + 8,), generator=generator, dtype=torch.int32)
    operands = {"logits": logits, "history": history, "sampled": torch.full((1,), -1, dtype=torch.int32)}
    operands["scores"] = torch.full((vocabulary,), float("nan"))
    axes: Axes = {"vocabulary": vocabulary, "block": block, "logits_dtype": "float32", "warps": warps, "pdl": False}
    said = " ".join(f"{name} {value}" for name, value in sampling.items()) or "greedy"
    given: dict[str, Any] = {"seed_low": 12345, "seed_high": 0x9ABCDEF0, **sampling}
    return Case(f"sample {vocabulary} at {start}: {said}", "sample", axes, operands, fields(start, **given))


def _dtypes(dtype: str) -> Axes:
    return {"dtype": dtype, "weight_dtype": dtype}


SAMPLING: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.8},
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 0.9, "top_p": 0.3, "repetition_penalty": 1.2},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 0.9},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_k": 1},
)


def small_cases(dtype: str = "float16") -> list[Case]:
    """A few of each, small enough for Triton's interpreter."""
    return [
        embedding(1, 72, dtype),
        embedding(3, 1100, dtype),
        rotary_table(1, 40, 1234),
        rotary_table(2, 64, 0),
        linear(8, 256, dtype, rows=2, block=128),
        linear(10, 200, dtype, rows=4, block=128, bias=True),
        linear(3, 1100, dtype, rows=2, block=64, residual=False),
        gated_linear(8, 256, dtype, rows=2, block=256),
        gated_linear(5, 88, dtype, rows=4, block=64, bias=True),
        gated_linear(6, 1100, dtype, rows=2, block=64),
        vocabulary_logits(9, 96, dtype, rows=2, block=64),
        vocabulary_logits(8, 128, dtype, rows=4, block=128, length=3, bias=True),
        attention_inputs(2, 2, 64, 96, dtype, rows=4, block=64),
        attention_inputs(4, 2, 80, 72, dtype, rows=8, block=64, bias=True),
        attention_inputs(4, 1, 96, 64, dtype, rows=2, block=64, norm=True),
        attention(2, 2, 64, 0, dtype),
        attention(4, 2, 80, 63, dtype),
        attention(6, 2, 96, 64, dtype, shares=4, least=32),
        attention(4, 1, 128, 200, dtype, shares=4, block=16),
        attention(4, 2, 64, 20, dtype, window=9),
        attention(2, 2, 64, 300, dtype, window=90, capacity=120, shares=4, least=16),
        attention_inputs(4, 2, 64, 72, dtype, rows=8, block=64, start=31, ring=True),
        *(sample(300, block=256, **sampling) for sampling in SAMPLING),
    ]  # fmt: skip


def large_cases(dtype: str) -> list[partial[Case]]:
    """The shapes of LLaMA-2 7B and others, awkward ones among them: for a device. Made when called."""
    lengths = (0, 1, 63, 64, 65, 127, 511, 1000, 2047)
    return [
        partial(embedding, 1, 4096, dtype),
        partial(linear, 4096, 4096, dtype, rows=4, block=1024),
        partial(linear, 4096, 11008, dtype, rows=1, block=2048),
        partial(linear, 1000, 5000, dtype, rows=8, block=512, bias=True),
        partial(gated_linear, 11008, 4096, dtype, rows=2, block=1024),
        partial(gated_linear, 5632, 2048, dtype, rows=4, block=512, bias=True),
        partial(gated_linear, 1111, 1004, dtype, rows=2, block=256),
        partial(vocabulary_logits, 32000, 4096, dtype, rows=4, block=1024),
        partial(vocabulary_logits, 32003, 2048, dtype, rows=4, block=512, length=7),
        partial(attention_inputs, 32, 32, 128, 4096, dtype, rows=2, block=1024),
        partial(attention_inputs, 32, 4, 64, 2048, dtype, rows=4, block=1024, start=0),
        partial(attention_inputs, 12, 4, 80, 960, dtype, rows=8, block=256, bias=True),
        partial(attention_inputs, 8, 2, 96, 768, dtype, rows=4, block=256, norm=True),
        partial(attention_inputs, 16, 8, 128, 1024, dtype, rows=4, block=512, norm=True),
        *(partial(attention, 32, 32, 128, start, dtype, capacity=2050) for start in lengths),
        *(partial(attention, 32, 4, 64, start, dtype, shares=32, block=16, capacity=2050) for start in lengths),
        partial(attention, 12, 4, 80, 300, dtype, block=16),
        partial(attention, 8, 2, 96, 777, dtype, block=16),
        partial(attention, 32, 8, 128, 1500, dtype, shares=16, block=16),
        partial(attention, 7, 1, 64, 100, dtype, shares=4, block=16),
    ]


def sampling_cases() -> list[partial[Case]]:
    many = [partial(sample, 32000, block=4096, warps=32, **sampling) for sampling in SAMPLING]
    return many + [partial(sample, 1111, start, temperature=1.0, top_p=0.9) for start in range(40, 60)]


def name_of(case: partial[Case]) -> str:
    said = [*map(str, case.args), *(f"{name}={value}" for name, value in case.keywords.items())]
    return " ".join([case.func.__name__, *said])
