"""What do the templates for prompts compute, on any device, beside the meaning of their ops in float32?

A case is a template with axes, and shapes for its op's letters; `check` runs it for several true lengths under one
bucket. How a kernel is launched is the caller's: Triton's interpreter on the CPU, or a cubin on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from hjgc.compiler.kernels.declaration import Template
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.sizes import Size, evaluate

AxisValues = dict[str, bool | int | str]
Tensors = dict[str, torch.Tensor]
Grid = tuple[int, int, int]
Launch = Callable[[str, AxisValues, Grid, list[Any]], None]
"""Runs a template with these axes over a grid; the arguments in the template's order, None for those left out."""

ATTRIBUTES: Mapping[str, float] = {"epsilon": 1e-5, "head_norm_epsilon": 1e-6, "scale": 0.125}
PRODUCT: AxisValues = {
    "dtype": "float16",
    "block_m": 16,
    "extra_m": 0,
    "block_n": 32,
    "extra_n": 0,
    "block_k": 64,
    "stages": 3,
    "swap": False,
    "early": True,
    "warps": 4,
    "pdl": False,
}


@dataclass(frozen=True)
class Case:
    """`lengths` are run under the bucket `tokens` and exactly; `shape` names the sizes that the op's tensors have."""

    name: str
    template: str
    axes: AxisValues
    lengths: tuple[int, ...]
    tokens: int
    start: int = 0
    shape: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Outcome:
    """`error` is the largest ||found - expected|| / ||expected|| over what is written at any length. `same` says that
    bucket, exact grid and a second run gave the same bits; `untouched` that nothing else was written."""

    error: float
    same: bool
    untouched: bool


def product(name: str, template: str, rows: int, columns: int, **more: Any) -> Case:
    lengths, start, shape = more.pop("lengths"), more.pop("start", 0), more.pop("shape", {})
    tokens = more.pop("tokens", max(lengths))
    axes = PRODUCT | {"rows": rows, "columns": columns} | more
    return Case(name, template, axes, tuple(lengths), tokens, start, shape)


def inputs(name: str, heads: int, kv_heads: int, size: int, columns: int, **more: Any) -> Case:
    rows = (heads + 2 * kv_heads) * size
    flags = {"norm": False, "bias": False, "head_norm": False, "ring": False}
    layout = {"heads": heads, "kv_heads": kv_heads, "head_size": size}
    return product(name, "prefill_attention_inputs", rows, columns, **(flags | layout | more))


def join(name: str, columns: int, splits: int, **more: Any) -> Case:
    lengths = tuple(more.pop("lengths"))
    axes: AxisValues = {"dtype": "float16", "columns": columns, "splits": splits, "row_capacity": 32, "pdl": False}
    axes |= {"bias": False, "residual": False, "norm": True, "warps": 4} | more
    return Case(name, "prefill_join", axes, lengths, max(lengths))


def attention(name: str, heads: int, kv_heads: int, size: int, **more: Any) -> Case:
    lengths, start = tuple(more.pop("lengths")), more.pop("start", 0)
    tokens = more.pop("tokens", max(lengths))
    axes: AxisValues = {"dtype": "float16", "heads": heads, "kv_heads": kv_heads, "head_size": size}
    axes |= {"window": 0, "block_m": 16, "block_n": 16, "stages": 2, "warps": 4, "pdl": False} | more
    return Case(name, "prefill_attention", axes, lengths, tokens, start)


PIECES = {"extra_m": 16, "extra_n": 16}
LINEAR = {"bias": False, "residual": False}
GATED = {"bias": False, "norm": False}
CASES = (
    product("linear", "prefill_linear", 64, 128, lengths=(1, 16, 17, 40), tokens=48, **LINEAR),
    product("linear of odd sizes", "prefill_linear", 75, 83, lengths=(3, 21), tokens=24, bias=True, residual=True),
    product("linear, swapped", "prefill_linear", 96, 136, lengths=(5, 16), swap=True, bias=True, residual=True),
    product("linear in pieces", "prefill_linear", 100, 128, lengths=(20, 50), tokens=64, **PIECES, **LINEAR),
    product("parts", "prefill_linear_parts", 64, 256, lengths=(5, 17), splits=3, row_capacity=24),
    product("parts of odd sizes", "prefill_linear_parts", 75, 171, lengths=(3,), splits=2, row_capacity=8, swap=True),
    join("join", 64, 3, lengths=(1, 9, 32), residual=True),
    join("join without a norm", 75, 2, lengths=(6,), bias=True, norm=False),
    product("linear in bf16", "prefill_linear", 64, 64, lengths=(9,), dtype="bfloat16", bias=False, residual=True),
    product("gated linear", "prefill_gated_linear", 128, 64, lengths=(2, 16, 33), tokens=48, **GATED),
    product("gated linear of odd sizes", "prefill_gated_linear", 90, 72, lengths=(7,), norm=True, bias=True),
    product("gated linear in pieces", "prefill_gated_linear", 200, 64, lengths=(37,), extra_m=16, extra_n=64, **GATED),
    product("gated linear, swapped", "prefill_gated_linear", 192, 64, lengths=(11,), swap=True, norm=True, bias=False),
    inputs("inputs", 2, 2, 64, 64, lengths=(1, 16, 20), tokens=32, capacity=40, start=3),
    inputs("inputs of grouped heads", 4, 1, 16, 96, lengths=(18,), capacity=24, bias=True, norm=True),
    inputs("inputs of 80 a head", 3, 1, 80, 64, lengths=(5, 17), capacity=33, start=9, bias=True, swap=True),
    inputs("inputs of 96 a head", 2, 1, 96, 72, lengths=(10,), capacity=16, block_n=64),
    inputs("inputs with norms of heads", 4, 2, 32, 64, lengths=(13,), capacity=20, head_norm=True, norm=True),
    inputs(
        "inputs with norms of odd heads", 2, 1, 24, 48, lengths=(6, 19), capacity=29, start=2, head_norm=True,
    ),
    inputs("inputs in a ring", 2, 2, 64, 64, lengths=(1, 16, 20), tokens=32, capacity=24, start=61, ring=True),
    inputs("inputs in pieces", 2, 2, 64, 64, lengths=(70,), capacity=80, start=5, extra_m=32, extra_n=16, norm=True),
    attention("attention", 2, 2, 64, lengths=(1, 16, 17, 48), tokens=64, capacity=64),
    attention("attention after others", 2, 1, 64, lengths=(1, 15, 30), tokens=32, capacity=70, start=37),
    attention("attention of grouped heads", 4, 1, 16, lengths=(20,), capacity=24, block_n=32),
    attention("attention of 80 a head", 2, 2, 80, lengths=(9, 33), capacity=60, start=16),
    attention("attention of 96 a head", 2, 1, 96, lengths=(21,), capacity=50, start=1),
    attention("attention in a window", 2, 1, 64, lengths=(1, 16, 40), capacity=70, start=5, window=7),
    attention("attention in a ring", 4, 2, 64, lengths=(1, 17, 30), capacity=53, start=140, window=23, block_n=32),
    attention("attention in bf16", 2, 1, 128, lengths=(5, 17), capacity=40, start=20, dtype="bfloat16"),
)  # fmt: skip


def letters(case: Case) -> dict[str, int]:
    """The sizes of the op's tensors, but for M."""
    axes = case.axes
    shares = {"S": int(axes.get("splits", 1)), "R": int(axes.get("row_capacity", 1))}
    if "rows" not in axes and "heads" not in axes:
        return shares | {"N": int(axes["columns"])}
    if "heads" not in axes:
        sizes = shares | {"N": int(axes["rows"]), "K": int(axes["columns"]), "H": int(axes["columns"])}
        return sizes | {"F": sizes["N"] // 2}
    heads, size = int(axes["heads"]), int(axes["head_size"])
    sizes = {"Q": heads, "G": int(axes["kv_heads"]), "D": size, "C": int(axes["capacity"]), "A": heads * size}
    if "rows" in axes:
        sizes |= {"N": int(axes["rows"]), "H": int(axes["columns"]), "F": size // 2}
    return sizes


def make_tensors(case: Case, template: Template, device: str, seed: int = 3) -> Tensors:
    """Random operands for `case.tokens` rows, those the kernel writes full of NaN."""
    generator = torch.Generator().manual_seed(seed)
    sizes = letters(case) | {"M": case.tokens}
    present = {p.name for p in template.present(case.axes)}
    dtype = getattr(torch, str(case.axes["dtype"]))
    made: Tensors = {}
    for role in all_ops()[template.op].roles:
        if role.dtype == "parameters" or (role.optional and role.name not in present):
            continue
        shape = [sizes[axis] for axis in role.axes]
        values = torch.randn(shape, generator=generator)
        if role.name.endswith("weight") and len(shape) == 2:
            values /= math.sqrt(shape[1])
        kind = torch.float32 if role.dtype == "float32" else dtype
        made[role.name] = values.to(kind).to(device)
        if role.access == "write":
            made[role.name].fill_(torch.nan)
    for name in ("key_cache", "value_cache"):
        if name in made and template.op == "attention_inputs":
            made[name][:, case.start :] = torch.nan
    return made


def past_the_end(case: Case, length: int, tensors: Tensors) -> Tensors:
    """The operands as a run of `length` rows finds them: what lies past the end is garbage, here NaN."""
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if name in ("x", "query", "residual", "cos", "sin"):
            tensor[length:] = torch.nan
        elif name == "parts":
            tensor[:, length:] = torch.nan
        elif name in ("key_cache", "value_cache"):
            tensor[:, case.start + length :] = torch.nan
    return found


def arguments(case: Case, template: Template, tensors: Tensors, length: int) -> list[Any]:
    device = next(iter(tensors.values())).device
    fields = {"start": case.start, "length": length}
    values: list[Any] = []
    for parameter in template.parameters:
        if not parameter.is_present(case.axes):
            values.append(None)
        elif parameter.source == "operand":
            values.append(tensors[parameter.name])
        elif parameter.source == "field":
            values.append(torch.tensor([fields[parameter.name]], dtype=torch.int32, device=device))
        else:
            values.append(ATTRIBUTES[parameter.name])
    return values


def grid(case: Case, template: Template, tokens: int) -> Grid:
    sizes = letters(case) | {"M": Size("tokens")}
    x, y, z = (evaluate(part, {"tokens": tokens}) for part in template.grid(sizes, case.axes))
    return x, y, z


def reference(case: Case, op_name: str, tensors: Tensors, length: int) -> Tensors:
    """What the op writes, in float32, from the same half-precision operands."""
    op = all_ops()[op_name]
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    for role in op.roles:
        if role.axes[:1] == ("M",) and role.name in wide:
            wide[role.name] = wide[role.name][:length].clone()
    given: dict[str, Any] = {role.name: wide.get(role.name) for role in op.roles}
    given |= {name: ATTRIBUTES.get(name, case.axes.get(name)) for name in op.attributes}
    if "parameters" in given:
        given["parameters"] = SimpleNamespace(start=case.start, length=length)
    op.reference(**given)
    return {role.name: wide[role.name] for role in op.roles if role.access != "read" and role.name in wide}


def written(case: Case, name: str, tensor: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of an output that a run of `length` rows writes, and the rest."""
    if name in ("key_cache", "value_cache"):
        capacity = tensor.shape[1]
        rows = [position % capacity for position in range(case.start, case.start + length)]
        return tensor[:, rows], tensor[:, [row for row in range(capacity) if row not in rows]]
    if name == "parts":
        return tensor[:, :length].sum(0), tensor[:, length:]
    return tensor[:length], tensor[length:]


def check(case: Case, template: Template, launch: Launch, device: str) -> Outcome:
    tensors = make_tensors(case, template, device)
    error, same, untouched = 0.0, True, True
    for length in case.lengths:
        expected = reference(case, template.op, {name: tensor.cpu() for name, tensor in tensors.items()}, length)
        runs: list[Tensors] = []
        for tokens in (case.tokens, length, case.tokens):
            given = past_the_end(case, length, tensors)
            launch(case.template, case.axes, grid(case, template, tokens), arguments(case, template, given, length))
            runs.append({name: given[name] for name in expected})
        for name, wide in expected.items():
            found, rest = written(case, name, runs[0][name], length)
            wide = written(case, name, wide, length)[0]
            error = max(error, float((found.float().cpu() - wide).norm() / wide.norm()))
            before = written(case, name, past_the_end(case, length, tensors)[name], length)[1]
            untouched &= same_bits(rest, before)
            same &= all(same_bits(run[name], runs[0][name]) for run in runs)
    return Outcome(error, same, untouched)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
