"""What is it that a caller gives for an argument of a function: the arrays that the plan wants, or what else?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.sizes import Expression, spell
from hjgc.plan_format.structs import Port
from hjgc.runtime.backend import Value
from hjgc.runtime.ort_values import BITS, dtype_of_bits

NAMES = {
    "float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "float4e2m1": "float4_e2m1fn",
    "float8e8m0": "float8_e8m0fnu",
}  # fmt: skip
"""How numpy, or ml_dtypes, calls ONNX's types where the names differ."""
KINDS = {"f": "biuf", "c": "biufc", "i": "biu", "u": "biu", "b": "b"}
"""By the kind of a type, the kinds of plain numbers that it may take."""


def argument(port: Port, given: Any) -> Value:
    """The value of an argument: an array of its type, a list of them, or None. Raises RunError that names it."""
    what = f"input {port.name!r}"
    if given is None and not port.type.startswith("optional("):
        shape = f" {shape_text(port.shape)}" if port.type.startswith("tensor(") else ""
        raise RunError(f"{what}: expected {port.type}{shape}, found none")
    return _value(what, port.type, given)


def shape_text(shape: tuple[Expression | None, ...] | None) -> str:
    axes = ", ".join("?" if axis is None else spell(axis) for axis in shape or ())
    return f"[{axes}]"


def _value(what: str, kind: str, given: Any) -> Value:
    outer, _, inner = kind.removesuffix(")").partition("(")
    if outer == "optional":
        return None if given is None else _value(what, inner, given)
    if outer == "seq":
        if not isinstance(given, list | tuple):
            raise RunError(f"{what}: expected {kind}, found {type(given).__name__}")
        return [_value(f"{what}, item {i}", inner, item) for i, item in enumerate(given)]
    return _array(what, NAMES.get(inner, inner), given) if outer == "tensor" else given


def _array(what: str, wanted: str, given: Any) -> NDArray[Any]:
    """An array keeps its type, a plain number or list takes the one that is wanted."""
    try:
        array = np.asarray(given)
    except ValueError:
        raise RunError(f"{what}: expected {wanted}, found a ragged list") from None
    found = str(array.dtype)
    if wanted == "string":
        return _text(what, array)
    if found != wanted:
        plain = not isinstance(given, np.ndarray | np.generic)
        array = _numbers(what, wanted, array) if plain else _from_bits(what, wanted, array)
    return np.ascontiguousarray(array).reshape(array.shape)


def _text(what: str, array: NDArray[Any]) -> NDArray[Any]:
    """As it is, if all of it is text."""
    if array.dtype.kind not in "UO":
        raise RunError(f"{what}: expected text, found {array.dtype}")
    for item in array.flat if array.dtype.kind == "O" else ():
        if not isinstance(item, str):
            raise RunError(f"{what}: expected text, found {type(item).__name__} among it")
    return array


def _numbers(what: str, wanted: str, array: NDArray[Any]) -> NDArray[Any]:
    """Numbers as those of another type, if it has them."""
    dtype = np.dtype(wanted) if wanted in np.sctypeDict else None
    if dtype is None or (array.size and array.dtype.kind not in KINDS[dtype.kind]):
        raise RunError(f"{what}: expected {wanted}, found {array.dtype}")
    if dtype.kind in "iu" and array.size:
        ends = np.iinfo(dtype)
        if not ends.min <= int(array.min()) <= int(array.max()) <= ends.max:
            raise RunError(f"{what}: expected {wanted}, found numbers past it")
    return array.astype(dtype)


def _from_bits(what: str, wanted: str, array: NDArray[Any]) -> NDArray[Any]:
    """Of a type that numpy has not, the bits of each element."""
    bits = "uint16" if wanted == "bfloat16" else "uint8"
    if wanted not in BITS.values() or array.dtype != bits:
        raise RunError(f"{what}: expected {wanted}, found {array.dtype}")
    dtype = dtype_of_bits(wanted)
    return array if dtype is None else array.view(dtype)
