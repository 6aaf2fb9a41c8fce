"""Which inputs does a function get when nobody gives any?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.sizes import SizeDeclaration, evaluate
from hjgc.plan_format.structs import Phase, Port
from hjgc.runtime.arguments import NAMES
from hjgc.runtime.ort_values import dtype_of_bits

WORDS = "made up: floats normal, whole numbers and truth values 0 or 1"
BENCH_HIGHEST = 128
"""An open size of a call that is measured, unless somebody says otherwise."""
VERIFY_HIGHEST = 512
"""All open sizes of a call that is compared, multiplied: two sizes of 512 would keep a machine busy for hours."""


def call_sizes(phase: Phase, given: Mapping[str, int]) -> dict[str, int]:
    """Those `given`, and of every other open size its highest value, or 128 if that is more. Raises InputError for a
    size that the plan has not, or not with this value."""
    check_sizes(phase, given)
    usual = {size.name: min(size.high, max(size.low, BENCH_HIGHEST)) for size in phase.sizes}
    return {**usual, **given}


def spread_sizes(phase: Phase, given: Mapping[str, int]) -> list[dict[str, int]]:
    """Up to three calls: open sizes at their lowest (at least 1), in the middle, and as high as is quickly compared.
    Raises InputError as `call_sizes` does."""
    check_sizes(phase, given)
    lowest = {size.name: min(size.high, max(size.low, 1)) for size in phase.sizes} | dict(given)
    highest = lowest | _highest([size for size in phase.sizes if size.name not in given])
    middle = {name: (low + highest[name]) // 2 for name, low in lowest.items()}
    calls = [lowest, middle, highest]
    return [call for i, call in enumerate(calls) if call not in calls[:i]]


def _highest(sizes: Sequence[SizeDeclaration]) -> dict[str, int]:
    """All sizes up to the same limit, the largest with which they multiply to no more than VERIFY_HIGHEST."""

    def under(limit: int) -> dict[str, int]:
        return {size.name: min(size.high, max(size.low, limit)) for size in sizes}

    fits = [limit for limit in range(1, VERIFY_HIGHEST + 1) if math.prod(under(limit).values()) <= VERIFY_HIGHEST]
    return under(max(fits, default=1))


def check_sizes(phase: Phase, given: Mapping[str, int]) -> None:
    declared = {size.name: size for size in phase.sizes}
    for name, value in given.items():
        size = declared.get(name)
        if size is None:
            named = ", ".join(declared) or "it has none"
            raise InputError("--size", f"expected a size of the plan's inputs ({named}), found {name!r}")
        if not size.low <= value <= size.high:
            problem = f"expected {name} of {size.low} to {size.high}, found {value}"
            mend = f"compile again with --size {name}={min(size.low, value)}:{max(size.high, value)}"
            raise InputError("--size", problem, next_step=mend)


def make_inputs(phase: Phase, sizes: Mapping[str, int], seed: int) -> dict[str, NDArray[Any]]:
    """An array for each argument of the call, the same for the same seed and sizes; none for an optional. Whole
    numbers are 0 or 1, so that they do as indices and as masks. Raises InputError for a sequence."""
    random = np.random.default_rng([seed, *sizes.values()])
    ports = [port for port in phase.arguments if not port.type.startswith("optional(")]
    return {port.name: _make(port, sizes, random) for port in ports}


def _make(port: Port, sizes: Mapping[str, int], random: np.random.Generator) -> NDArray[Any]:
    if not port.type.startswith("tensor(") or port.shape is None:
        problem = f"expected inputs that are tensors of a known rank, found {port.name!r} of type {port.type}"
        raise InputError("inputs", f"{problem}, which cannot be made up", next_step="call the function from Python")
    shape = [1 if axis is None else evaluate(axis, sizes) for axis in port.shape]
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    if kind == "string":
        return random.integers(0, 2, shape).astype(str)
    dtype = numpy_type(kind)
    whole = kind.startswith(("int", "uint", "bool"))
    return random.integers(0, 2, shape).astype(dtype) if whole else random.standard_normal(shape).astype(dtype)


def numpy_type(kind: str) -> np.dtype[Any]:
    """Of an element type as ONNX spells it. Raises InputError for one that needs a package that is not there."""
    name = NAMES.get(kind, kind)
    dtype = np.dtype(name) if name in np.sctypeDict else dtype_of_bits(name)
    if dtype is None:
        problem = f"expected ml_dtypes for elements of {name}, found it not installed"
        raise InputError("inputs", problem, next_step="try pip install ml_dtypes")
    return dtype
