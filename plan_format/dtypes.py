"""Which element types may a plan name, and how wide are they?"""

from __future__ import annotations

from typing import Literal

DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "uint32", "uint8", "bool"]

ITEM_BYTES: dict[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint32": 4,
    "uint8": 1,
    "bool": 1,
}
