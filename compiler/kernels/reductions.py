"""How are numbers compared and combined in kernels that work along an axis?

They have rows, and columns along which they work, as the tile of `places.py`. Half precision is computed in float32,
narrow whole numbers in int32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from hjgc.compiler.kernels.declaration import OneOf
from hjgc.compiler.kernels.places import builtin

NUMBERS = OneOf(("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8"))
FLOATING = OneOf(("float32", "float16", "bfloat16", "float64"))
ROW_BLOCKS = OneOf(tuple(1 << i for i in range(15)))
NEVER = tl.constexpr((1 << 31) - 1)
"""The index of what is not there."""


@builtin
def end(x: Any, LARGEST: Any, _semantic: Any = None) -> Any:
    """The largest, or the smallest, that the elements at a pointer may be, in the type that they are computed in."""
    kernel = {} if _semantic is None else {"_semantic": _semantic}
    dtype, largest = x.dtype.element_ty, bool(getattr(LARGEST, "value", LARGEST))
    wide = dtype.primitive_bitwidth == 64
    if dtype.is_floating():
        return tl.full((), float("inf") if largest else -float("inf"), tl.float64 if wide else tl.float32, **kernel)
    signed = dtype.name.startswith("int") and dtype.name != "int1"
    bits = dtype.primitive_bitwidth - signed
    value = (1 << bits) - 1 if largest else -(1 << bits) * signed
    return tl.full((), value, tl.int64 if wide else tl.int32, **kernel)


@triton.jit
def widened(values):
    """In the type that they are computed in."""
    if values.dtype.primitive_bitwidth < 64:
        values = values.to(tl.float32 if values.dtype.is_floating() else tl.int32)
    return values


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def multiply(a, b):
    return a * b


@triton.jit
def larger(a, b):
    """What is no number stays so."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL) if a.dtype.is_floating() else tl.maximum(a, b)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL) if a.dtype.is_floating() else tl.minimum(a, b)


@triton.jit
def upended(values):
    """Of the same type, the largest as the smallest; twice upended they are themselves."""
    return -values if values.dtype.is_floating() else -1 - values


@triton.jit
def _first(a, i, b, j, ahead):
    """The one that lies `ahead`, or of two alike the one in front; what is not there comes last."""
    same = (a == b) | ((a != a) & (b != b))
    wins = (i != NEVER) & ((j == NEVER) | ahead | (same & (i < j)))
    return tl.where(wins, a, b), tl.where(wins, i, j)


@triton.jit
def largest(a, i, b, j):
    """Of two numbers and where they lie; what is no number counts as larger than all others."""
    return _first(a, i, b, j, (a > b) | ((a != a) & (b == b)))


@triton.jit
def largest_number(a, i, b, j):
    """The same, but what is no number counts as smaller than all others."""
    return _first(a, i, b, j, (a > b) | ((a == a) & (b != b)))
