"""How do tests and measurements on a device launch kernels that need no plan: memory, one launch, chains as graphs?"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hjgc.compiler.build import Built, build
from hjgc.compiler.kernels.declaration import Axes
from hjgc.plan_format.structs import parameter_block
from hjgc.runtime.backends.cuda_driver import Driver, Handle, LaunchShape
from hjgc.runtime.backends.cuda_launch import PACKING

Grid = tuple[int, int, int]
FIELDS = {field.name: field for field in parameter_block().fields}


def build_one(work: tuple[str, Axes], target: str) -> Built:
    """A template with its axes, built: something that a process of a pool can be asked for."""
    name, axes = work
    return build(name, axes, target)


@dataclass(frozen=True)
class Step:
    """One kernel with the values of its parameters, as the driver wants them."""

    function: Handle
    shape: LaunchShape
    pdl: bool
    slots: Any
    addresses: Any

    @property
    def parameters(self) -> int:
        return ctypes.addressof(self.addresses)


class Device:
    """A driver with one stream, a parameter block, and the functions of variants that were loaded."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.stream = self.driver.make_stream()
        self.block = self.driver.allocate(parameter_block().bytes)
        self._functions: dict[int, Handle] = {}
        self._kept: list[Built] = []

    def upload(self, data: np.ndarray) -> int:
        """The address of a copy of `data`."""
        address = self.driver.allocate(data.nbytes)
        self.driver.write(address, np.ascontiguousarray(data).view(np.uint8).reshape(-1), self.stream)
        return address

    def read(self, address: int, size: int) -> np.ndarray:
        return self.driver.read(address, size, self.stream)

    def write_fields(self, values: Mapping[str, int | float]) -> None:
        block = np.zeros(parameter_block().bytes, np.uint8)
        for name, value in values.items():
            field = FIELDS[name]
            block[field.offset : field.offset + 4] = np.array([value], field.dtype).view(np.uint8)
        self.driver.write(self.block, block, self.stream)

    def read_fields(self) -> dict[str, int | float]:
        block = self.read(self.block, parameter_block().bytes)
        return {n: block[f.offset : f.offset + 4].view(f.dtype)[0].item() for n, f in FIELDS.items()}

    def field(self, name: str) -> int:
        return self.block + FIELDS[name].offset

    def step(self, built: Built, grid: Grid, values: Sequence[int | float]) -> Step:
        """`values`: of each parameter but the compiler's own scratch, in order."""
        kinds = built.parameters
        slots = ctypes.create_string_buffer(8 * len(kinds))
        given = [*values, *(0 for kind in kinds if kind == "scratch")]
        for i, (kind, value) in enumerate(zip(kinds, given, strict=True)):
            struct.pack_into(PACKING[kind], slots, 8 * i, value)
        first = ctypes.addressof(slots)
        addresses = (ctypes.c_uint64 * len(kinds))(*(first + 8 * i for i in range(len(kinds))))
        shape = LaunchShape(grid, built.threads, built.shared_bytes)
        return Step(self._function(built), shape, built.pdl, slots, addresses)

    def _function(self, built: Built) -> Handle:
        if id(built) not in self._functions:
            module = self.driver.load_module(built.cubin)
            self._functions[id(built)] = self.driver.function(module, built.entry, built.shared_bytes)
            self._kept.append(built)
        return self._functions[id(built)]

    def run(self, steps: Sequence[Step], *, overlap: bool = True) -> None:
        """Launch the steps in order."""
        for i, step in enumerate(steps):
            config = self.driver.configure(step.shape, overlap and step.pdl and i > 0, self.stream)
            self.driver.launch(config, step.function, step.parameters)

    def graph(self, steps: Sequence[Step], *, overlap: bool = True) -> Handle:
        """An executable graph of the steps, one after the other."""
        graph = self.driver.make_graph()
        before: list[Handle] = []
        for i, step in enumerate(steps):
            early = [overlap and step.pdl and steps[i - 1].pdl] if before else []
            before = [self.driver.add_kernel(graph, step.shape, (step.function, step.parameters), before, early)]
        executable = self.driver.instantiate(graph, self.stream)
        self.driver.drop_graph(graph)
        return executable
