"""How does the host read and write the parameter block by field name?"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.structs import ParameterBlock

C_TYPES = {"int32": ctypes.c_int32, "uint32": ctypes.c_uint32, "float32": ctypes.c_float}


class Parameters:
    """The block: its bytes as `data` (uint8), its fields as attributes of `fields`, which reads and writes the same
    bytes. A C structure, because every launch reads it and attribute access must cost next to nothing."""

    def __init__(self, block: ParameterBlock) -> None:
        ordered = sorted(block.fields, key=lambda field: field.offset)
        layout: Any = type("Block", (ctypes.Structure,), {"_fields_": [(f.name, C_TYPES[f.dtype]) for f in ordered]})
        self.data: NDArray[np.uint8] = np.zeros(block.bytes, np.uint8)
        self.fields: Any = layout.from_buffer(self.data)
        for field in ordered:
            assert getattr(layout, field.name).offset == field.offset, "the block has gaps"
