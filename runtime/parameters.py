"""How does the host read and write the parameter block by field name?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.structs import ParameterBlock


class Parameters:
    """The block's fields as attributes, over its bytes (`data`, uint8). Setting one writes the bytes."""

    __slots__ = ("_fields", "data")

    data: NDArray[np.uint8]
    _fields: dict[str, NDArray[np.generic]]

    def __init__(self, block: ParameterBlock) -> None:
        data = np.zeros(block.bytes, np.uint8)
        fields = {field.name: data[field.offset : field.offset + 4].view(field.dtype) for field in block.fields}
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "_fields", fields)

    def __getattr__(self, name: str) -> int | float:
        try:
            return self._fields[name].item()
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: int | float) -> None:
        self._fields[name][0] = value
