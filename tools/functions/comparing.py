"""Where does what one computed differ from what another computed for the same inputs?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.structs import Phase

TOLERANCES = {
    "float64": 1e-7, "complex128": 1e-7, "float32": 1e-4, "complex64": 1e-4, "float16": 2e-2, "bfloat16": 1e-1,
    "float8": 0.25, "float4": 0.5,
}  # fmt: skip
"""By how a type's name begins, how far a number may be off, as a part of the output's largest magnitude: sums in
another order round otherwise, and float16 keeps 11 bits of every sum, bfloat16 8. Whole numbers, truth values and text
are not rounded and have none."""


@dataclass(frozen=True)
class Place:
    """An element that differs."""

    index: tuple[int, ...]
    found: str
    expected: str


@dataclass(frozen=True)
class Compared:
    """An output, or an item of one that is a sequence. `error` is the largest absolute difference and `magnitude` the
    largest absolute value expected; both are 0 for what must be equal. `differ` elements are off by more than the
    tolerance, `first` is the first of them. `problem` says why no element was compared."""

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    tolerance: float = 0.0
    error: float = 0.0
    magnitude: float = 0.0
    differ: int = 0
    first: Place | None = None
    problem: str = ""

    @property
    def equal(self) -> bool:
        return not self.problem and self.differ == 0

    @property
    def relative(self) -> float:
        """The error as a part of the magnitude; of nothing but zeros, the error."""
        return self.error / (self.magnitude or 1.0)


def tolerance_of(dtype: str) -> float:
    return next((limit for name, limit in TOLERANCES.items() if dtype.startswith(name)), 0.0)


def coarsest(phase: Phase) -> str:
    """The type of a call's buffers that keeps the fewest bits: no output is more exact than what it is computed from.
    Empty where nothing is rounded."""
    names = dict.fromkeys(buffer.dtype for buffer in phase.buffers if tolerance_of(buffer.dtype))
    return max(names, key=tolerance_of, default="")


def compare(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, least: float = 0.0, tolerance: float | None = None
) -> list[Compared]:
    """Every output that is expected, in order. Numbers that are rounded may be off by their type's tolerance, and by
    `least` whatever their type; or by `tolerance` if that is given."""
    return [one for name, wanted in expected.items() for one in _compare(name, found[name], wanted, least, tolerance)]


def _compare(name: str, found: Any, expected: Any, least: float, tolerance: float | None) -> Iterator[Compared]:
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for i, (item, wanted) in enumerate(zip(found, expected, strict=True)):
            yield from _compare(f"{name}.{i}", item, wanted, least, tolerance)
    elif isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        yield _compare_arrays(name, found, expected, least, tolerance)
    elif (what := _described(expected)) != _described(found):
        yield Compared(name, problem=f"expected {what}, found {_described(found)}")
    else:
        yield Compared(name, dtype=what)


def _compare_arrays(
    name: str, found: NDArray[Any], expected: NDArray[Any], least: float, tolerance: float | None
) -> Compared:
    dtype, shape = element_type(expected), expected.shape
    if (element_type(found), found.shape) != (dtype, shape):
        return Compared(name, dtype, shape, problem=f"expected {_described(expected)}, found {_described(found)}")
    usual = tolerance_of(dtype)
    if not usual:
        wrong = np.asarray(found != expected)
        return Compared(name, dtype, shape, differ=int(wrong.sum()), first=_first(wrong, found, expected))
    limit = max(usual, least) if tolerance is None else tolerance
    errors, magnitude = _errors(found, expected)
    wrong = errors > limit * (magnitude or 1.0)
    worst = float(errors.max(initial=0.0))
    first = _first(wrong, found, expected)
    return Compared(name, dtype, shape, limit, worst, magnitude, int(wrong.sum()), first)


def _errors(found: NDArray[Any], expected: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """The absolute differences, infinite where only one of two is a number; and the largest finite magnitude."""
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    one, other = found.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
        sizes = np.abs(other)
    return np.where(np.isnan(errors), np.inf, errors), float(sizes.max(initial=0.0, where=np.isfinite(sizes)))


def _first(wrong: NDArray[np.bool_], found: NDArray[Any], expected: NDArray[Any]) -> Place | None:
    if not wrong.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    return Place(index, str(found[index]), str(expected[index]))


def element_type(array: NDArray[Any]) -> str:
    """As people call it: text is `string` however numpy keeps it."""
    return "string" if array.dtype.kind in "OU" else str(array.dtype)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{element_type(value)} {list(value.shape)}"
    return (
        f"a sequence of {len(value)}" if isinstance(value, list) else "nothing" if value is None else str(type(value))
    )


def different(compared: Iterable[Compared]) -> Compared | None:
    """The first output that is not equal."""
    return next((one for one in compared if not one.equal), None)
