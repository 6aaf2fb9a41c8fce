"""How does a test launch a template that takes tensor maps, over tensors that torch holds?"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import torch

from hjgc.compiler.build import build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import Axes, Parameter
from hjgc.runtime.backends.cuda_driver import TENSOR_MAP_BYTES
from hjgc.runtime.backends.cuda_launch import PACKING
from tests.gpu.prefill_device import Call, Code, Grid, driver, load

ROOM = TENSOR_MAP_BYTES
"""Bytes between the values of two parameters, so that a tensor map fits anywhere."""


class MappedCall(Call):
    """One launch of the template `name` with its arguments packed, tensor maps made from the tensors."""

    def __init__(
        self, code: Code, name: str, axes: Axes, grid: Grid, arguments: Sequence[Any], *, overlaps: bool = True
    ) -> None:
        super().__init__(code, grid, (), overlaps=overlaps)
        self.kept = [argument for argument in arguments if argument is not None]
        parameters = template(name).present(axes)
        self._room = ctypes.create_string_buffer(ROOM * (len(parameters) + 1))
        first = -(-ctypes.addressof(self._room) // ROOM) * ROOM
        self._addresses = (ctypes.c_uint64 * len(parameters))(*(first + ROOM * i for i in range(len(parameters))))
        self.parameters = ctypes.addressof(self._addresses)
        for place, parameter, argument in zip(self._addresses, parameters, self.kept, strict=True):
            value = _packed(parameter, axes, argument)
            ctypes.memmove(place, value, len(value))


def _packed(parameter: Parameter, axes: Axes, argument: Any) -> bytes:
    if parameter.map is not None:
        made, dtype = parameter.map(axes), str(argument.dtype).removeprefix("torch.")
        return driver().tensor_map(argument.data_ptr(), dtype, made.sizes, made.strides, made.box, made.swizzle)
    value = argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
    return struct.pack(PACKING[parameter.kind(axes)], value)


_loaded: dict[str, Code] = {}


def run(name: str, axes: Axes, grid: Grid, arguments: Sequence[Any]) -> None:
    """Build the template, launch it on torch's stream, and wait."""
    code = _loaded.get(key := repr((name, sorted(axes.items()))))
    if code is None:
        code = _loaded[key] = load(build(name, axes, "sm_90"))
    call = MappedCall(code, name, axes, grid, arguments)
    stream = torch.cuda.current_stream().cuda_stream
    driver().launch(driver().configure(call.shape, code.pdl, stream), code.function, call.parameters)
    torch.cuda.synchronize()
