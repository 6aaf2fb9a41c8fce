"""What is a prompt's pass through LLaMA-2-7B, as launches: random weights, every layer, the head on the last row?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hjgc.compiler.kernels import template
from hjgc.plan_format.sizes import evaluate
from tests.gpu.prefill_device import Call, Code

HIDDEN, INNER, HEADS, SIZE, VOCABULARY, CAPACITY, MOST_ROWS = 4096, 11008, 32, 128, 32000, 2049, 512
EPSILON = 1e-5
Axes = Mapping[str, bool | int | str]
Load = Callable[[str, Axes], Code]
HALF = {"dtype": "float16", "pdl": True}
LAYOUT: dict[str, bool | int | str] = {
    "heads": HEADS, "kv_heads": HEADS, "head_size": SIZE, "capacity": CAPACITY,
}  # fmt: skip
PLAIN: dict[str, bool | int | str] = {"norm": False, "bias": False}
FIXED: dict[str, tuple[str, dict[str, bool | int | str]]] = {
    "attention_inputs": (
        "prefill_attention_inputs",
        {"rows": 3 * HIDDEN, "columns": HIDDEN, "head_norm": False, "ring": False} | PLAIN | LAYOUT,
    ),
    "attention": ("prefill_attention", {"window": 0} | LAYOUT),
    "output": ("prefill_linear_parts", {"rows": HIDDEN, "columns": HIDDEN, "row_capacity": MOST_ROWS}),
    "gated_linear": ("prefill_gated_linear", {"rows": 2 * INNER, "columns": HIDDEN} | PLAIN),
    "down": ("prefill_linear_parts", {"rows": HIDDEN, "columns": INNER, "row_capacity": MOST_ROWS}),
    "head": ("prefill_linear", {"rows": VOCABULARY, "columns": HIDDEN, "bias": False, "residual": False}),
    "join": (
        "prefill_join",
        {"columns": HIDDEN, "row_capacity": MOST_ROWS, "bias": False, "residual": True, "norm": True, "warps": 8},
    ),
}
"""The template of each step, and those of its axes that the network decides."""


def axes_of(step: str, tile: Axes) -> dict[str, bool | int | str]:
    return {**HALF, **FIXED[step][1], **tile}


@dataclass(frozen=True)
class Layer:
    inputs: torch.Tensor
    output: torch.Tensor
    gated: torch.Tensor
    down: torch.Tensor


class Network:
    """Weights and buffers on the device."""

    def __init__(self, layers: int = 32) -> None:
        self.layers = [
            Layer(
                _weight(3 * HIDDEN, HIDDEN), _weight(HIDDEN, HIDDEN), _weight(2 * INNER, HIDDEN), _weight(HIDDEN, INNER)
            )
            for _ in range(layers)
        ]  # fmt: skip
        self.head = _weight(VOCABULARY, HIDDEN)
        self.norm = torch.ones(HIDDEN, dtype=torch.float16, device="cuda")
        self.x = [torch.randn(MOST_ROWS, HIDDEN, device="cuda").half() for _ in range(2)]
        self.normal, self.query, self.attended = (torch.zeros_like(self.x[0]) for _ in range(3))
        self.inner = torch.zeros(MOST_ROWS, INNER, dtype=torch.float16, device="cuda")
        self.parts = torch.zeros(16 * MOST_ROWS * HIDDEN, device="cuda")
        self.caches = [torch.zeros(2, HEADS, CAPACITY, SIZE, dtype=torch.float16, device="cuda") for _ in range(layers)]
        angles = torch.randn(MOST_ROWS, SIZE // 2, device="cuda")
        self.cos, self.sin = angles.cos(), angles.sin()
        self.logits = torch.zeros(1, VOCABULARY, dtype=torch.float16, device="cuda")
        self.start, self.one = _field(0), _field(1)

    def calls(self, load: Load, tiles: Mapping[str, Axes], length: int, tokens: int) -> list[Call]:
        """All launches of one pass over `length` rows, grids for `tokens`."""
        count = _field(length)
        made: list[Call] = []

        def add(step: str, *arguments: Any, rows: int = tokens, **more: int) -> None:
            name, axes = FIXED[step][0], axes_of(step, {**tiles[step], **more})
            letters = {"M": rows, "N": axes.get("rows", 0), "F": INNER}
            x, y, z = (evaluate(part, {}) for part in template(name).grid(letters, axes))  # type: ignore[arg-type]
            made.append(Call(load(name, axes), (x, y, z), arguments))

        def join(step: str) -> None:
            self.x.reverse()
            splits = int(tiles[step]["splits"])
            add("join", self.parts, self.x[1], self.norm, self.x[0], self.normal, count, EPSILON, splits=splits)

        for layer, cache in zip(self.layers, self.caches, strict=True):
            add(
                "attention_inputs", self.normal, layer.inputs, self.cos, self.sin, self.query, cache[0], cache[1],
                self.start, count, EPSILON, EPSILON,
            )  # fmt: skip
            add("attention", self.query, cache[0], cache[1], self.attended, self.start, count, SIZE**-0.5)
            add("output", self.attended, layer.output, self.parts, count)
            join("output")
            add("gated_linear", self.normal, layer.gated, self.inner, count, EPSILON)
            add("down", self.inner, layer.down, self.parts, count)
            join("down")
        add("head", self.normal[length - 1], self.head, self.logits, self.one, rows=1)
        return made


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.float16) * columns**-0.5


def _field(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int32, device="cuda")
