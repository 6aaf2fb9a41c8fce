"""Which tiles suit how many rows of a prompt, on which chip?

A range of row counts has one choice of tiles and parts, so that a prompt's bits depend on its length and not on the
bucket that serves it. Measured on an H200 over the layers of LLaMA-2-7B in fp16 (`tests/gpu/measure_prefill.py`); on
other chips a choice that fits the shared memory of each.
"""

from __future__ import annotations

from collections.abc import Mapping

from hjgc.compiler.kernels.declaration import AxisValue

Tile = Mapping[str, AxisValue]

RANGES = (16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512)
"""The last row count of each range; the first starts at 2."""

PDL_UP_TO = 96
"""With more rows the products fill the chip, and a successor that starts before the end is in the way."""


def range_of(rows: int) -> int:
    """The range that serves a call of so many rows: longer prompts run in chunks."""
    return next((top for top in RANGES if rows <= top), RANGES[-1])


def tiles(rows: int, target: str) -> dict[str, Tile]:
    """The axes that are free to choose, for the range of so many rows, by step: a layer's products `attention_inputs`,
    `output`, `gated_linear` and `down`, its `attention`, `join`, and the `head`."""
    top = range_of(rows)
    pdl = {"pdl": target == "sm_90" and top <= PDL_UP_TO}
    products = H200[top] if target == "sm_90" else SMALL
    chosen = {**products, "attention": _attention(top), "head": HEAD, "join": {"warps": 16}}
    return {step: {**tile, **pdl} for step, tile in chosen.items()}


def _tile(
    m: int, extra_m: int, n: int, extra_n: int, k: int, stages: int, warps: int, swap: bool, splits: int = 0
) -> Tile:
    sizes = {"block_m": m, "extra_m": extra_m, "block_n": n, "extra_n": extra_n, "block_k": k}
    return {
        **sizes,
        "stages": stages,
        "warps": warps,
        "swap": swap,
        "early": False,
        **({"splits": splits} if splits else {}),
    }


def _attention(top: int) -> Tile:
    m, n = (16, 32) if top <= 32 else (32, 64) if top <= 64 else (64, 64)
    return {"block_m": m, "block_n": n, "stages": 2, "warps": 4}


HEAD = _tile(16, 0, 64, 0, 128, 4, 4, True)
SMALL: Mapping[str, Tile] = {
    "attention_inputs": _tile(64, 0, 128, 0, 64, 3, 4, False),
    "output": _tile(64, 0, 64, 0, 64, 4, 4, False, 2),
    "gated_linear": _tile(64, 0, 128, 0, 64, 3, 4, False),
    "down": _tile(64, 0, 64, 0, 64, 4, 4, False, 2),
}
H200: Mapping[int, Mapping[str, Tile]] = {
    16: {
        "attention_inputs": _tile(16, 0, 64, 0, 64, 6, 4, True),
        "output": _tile(16, 0, 64, 0, 128, 4, 4, True, 4),
        "gated_linear": _tile(16, 0, 64, 0, 128, 3, 4, True),
        "down": _tile(16, 0, 64, 0, 128, 4, 4, True, 4),
    },
    32: {
        "attention_inputs": _tile(32, 0, 64, 0, 128, 3, 4, True),
        "output": _tile(32, 0, 64, 0, 128, 4, 4, True, 4),
        "gated_linear": _tile(32, 0, 64, 0, 128, 3, 4, True),
        "down": _tile(32, 0, 64, 0, 128, 4, 4, True, 4),
    },
    64: {
        "attention_inputs": _tile(64, 0, 64, 32, 128, 4, 4, False),
        "output": _tile(64, 0, 32, 0, 128, 6, 4, False, 1),
        "gated_linear": _tile(64, 0, 64, 0, 64, 4, 4, False),
        "down": _tile(64, 0, 64, 0, 128, 3, 4, True, 4),
    },
    96: {
        "attention_inputs": _tile(64, 32, 128, 0, 64, 6, 4, True),
        "output": _tile(64, 32, 128, 0, 64, 6, 8, True, 4),
        "gated_linear": _tile(64, 32, 128, 64, 64, 5, 4, True),
        "down": _tile(64, 32, 128, 0, 64, 6, 8, True, 4),
    },
    128: {
        "attention_inputs": _tile(128, 0, 64, 32, 64, 6, 4, False),
        "output": _tile(128, 0, 128, 0, 64, 6, 8, False, 4),
        "gated_linear": _tile(128, 0, 128, 64, 64, 5, 8, False),
        "down": _tile(128, 0, 128, 0, 64, 6, 8, False, 4),
    },
    160: {
        "attention_inputs": _tile(128, 32, 128, 0, 64, 5, 8, True),
        "output": _tile(128, 32, 128, 0, 64, 6, 8, True, 4),
        "gated_linear": _tile(128, 32, 128, 0, 64, 3, 4, True),
        "down": _tile(128, 32, 128, 0, 64, 6, 8, True, 4),
    },
    192: {
        "attention_inputs": _tile(128, 64, 128, 0, 64, 5, 8, False),
        "output": _tile(128, 64, 128, 0, 64, 5, 8, False, 4),
        "gated_linear": _tile(128, 64, 128, 64, 64, 4, 8, False),
        "down": _tile(128, 64, 128, 0, 64, 5, 8, False, 4),
    },
    256: {
        "attention_inputs": _tile(128, 0, 128, 64, 64, 5, 8, False),
        "output": _tile(128, 0, 128, 0, 64, 6, 8, False, 2),
        "gated_linear": _tile(256, 0, 128, 64, 64, 3, 8, False),
        "down": _tile(256, 0, 128, 0, 64, 4, 8, False, 4),
    },
    320: {
        "attention_inputs": _tile(64, 0, 256, 0, 64, 4, 8, False),
        "output": _tile(256, 64, 128, 0, 64, 3, 8, True, 4),
        "gated_linear": _tile(128, 32, 128, 0, 64, 3, 8, True),
        "down": _tile(256, 64, 128, 0, 64, 3, 8, False, 4),
    },
    384: {
        "attention_inputs": _tile(128, 64, 128, 64, 64, 4, 8, False),
        "output": _tile(128, 0, 128, 0, 64, 5, 8, False, 1),
        "gated_linear": _tile(128, 0, 256, 0, 64, 4, 8, False),
        "down": _tile(128, 64, 128, 0, 64, 4, 8, False, 2),
    },
    512: {
        "attention_inputs": _tile(128, 0, 128, 0, 64, 4, 8, False),
        "output": _tile(128, 0, 128, 0, 64, 5, 8, False, 1),
        "gated_linear": _tile(128, 0, 256, 0, 64, 3, 8, False),
        "down": _tile(128, 0, 128, 0, 64, 6, 8, False, 1),
    },
}
"""Rows x columns x depth of a tile, stages, warps, swapped, parts."""
