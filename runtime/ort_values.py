"""How do tensors pass between arrays of the host and ONNX Runtime's own values, types that numpy has not included?"""

from __future__ import annotations

import ctypes
import importlib
import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import RunError
from hjgc.runtime.backend import Value

BFLOAT16 = 16
"""ONNX's number for it: numpy has no such type, its bits travel as uint16."""
NUMPY_KINDS = frozenset((*range(1, 14), 14, 15))
"""ONNX's numbers of the types that numpy has, text among them."""
BITS = {
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4",
    22: "int4", 23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip
"""Types that numpy has not, by the name that `ml_dtypes` gives them."""
PACKED = {21: 2, 22: 2, 23: 2, 25: 4, 26: 4}
"""How many elements lie in a byte, the first in its lowest bits."""
NOTHING = np.empty(0, np.uint8)


def ort_value(ort: Any, array: NDArray[Any], kind: int | None = None) -> Any:
    """The array as ONNX Runtime's own value, which shares its memory; `kind` is ONNX's number of a type that numpy has
    not."""
    if kind is not None:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def wrapped(ort: Any, array: NDArray[Any]) -> Value:
    """An array of the host as ONNX Runtime's own value; text stays an array."""
    kind = next((kind for kind, name in BITS.items() if name == str(array.dtype)), None)
    if kind is None:
        return ort_value(ort, array) if array.dtype.kind not in "OU" else array
    if kind not in PACKED:
        return ort_value(ort, array.view(np.uint16 if kind == BFLOAT16 else np.uint8), kind)
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, kind)
    raw = packed(array, PACKED[kind])
    if raw.size:
        ctypes.memmove(value.data_ptr(), raw.ctypes.data, raw.size)
    return value


def host_value(value: Value) -> Value:
    """What the caller gets for a value of the host's: arrays for tensors."""
    if value is None or isinstance(value, list | np.ndarray | dict):
        return value
    return to_host(value) if value.has_value() else None


def packed(array: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """The bytes that hold `count` elements each."""
    bits = 8 // count
    flat = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    whole = np.append(flat, np.zeros(-flat.size % count, np.uint8)).reshape(-1, count)
    return np.bitwise_or.reduce(whole << _shifts(count), axis=1, dtype=np.uint8)


def _shifts(count: int) -> NDArray[np.uint8]:
    return np.arange(0, 8, 8 // count, dtype=np.uint8)


@cache
def dtype_of_bits(name: str) -> np.dtype[Any] | None:
    """A type that numpy has not, if `ml_dtypes` is installed."""
    return None if find_spec("ml_dtypes") is None else np.dtype(getattr(importlib.import_module("ml_dtypes"), name))


def in_bits(array: NDArray[Any]) -> NDArray[Any]:
    """An array as a buffer holds it: of a type that numpy has not, the bits."""
    dtype = dtype_of_bits("bfloat16")
    return array.view(np.uint16) if dtype is not None and array.dtype == dtype else array


def out_of_bits(array: NDArray[Any], kind: str) -> NDArray[Any]:
    """What the caller gets for an array that was in a buffer; `kind` is its type as ONNX spells it."""
    dtype = dtype_of_bits("bfloat16") if kind == "tensor(bfloat16)" else None
    return array if dtype is None else array.view(dtype)


def to_host(value: Any) -> NDArray[Any]:
    """A tensor of ONNX Runtime's as an array of the host; of a type that numpy has not, its bytes, as the elements of
    `ml_dtypes` where that is installed."""
    if value.element_type() in NUMPY_KINDS:
        return value.numpy()
    size = value.tensor_size_in_bytes()
    raw = np.frombuffer((ctypes.c_uint8 * size).from_address(value.data_ptr()), np.uint8).copy() if size else NOTHING
    return from_bits(raw, value.element_type(), tuple(value.shape()))


def from_bits(raw: NDArray[np.uint8], kind: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Elements of an ONNX type that numpy has not, from their bytes."""
    name = BITS.get(kind)
    if name is None:
        raise RunError(f"expected elements that an array can hold, found ONNX type {kind}")
    dtype = dtype_of_bits(name)
    if dtype is None:
        return raw if kind in PACKED else raw.view(np.uint16 if kind == BFLOAT16 else np.uint8).reshape(shape)
    if kind not in PACKED:
        return raw.view(dtype).reshape(shape)
    count = PACKED[kind]
    top = 1 << (8 // count - 1)
    found = (raw[:, None] >> _shifts(count) & (2 * top - 1)).reshape(-1)[: math.prod(shape)]
    signed = (found ^ top).astype(np.int8) - top if name.startswith("int") else found
    return (found.view(dtype) if name.startswith("float") else signed.astype(dtype)).reshape(shape)
