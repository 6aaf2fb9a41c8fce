"""Where on the device does each part of a plan live?

One allocation for what lasts (weights, constants, states, the parameter block), one for the arena. Every address is a
multiple of 256, which kernels rely on. The token history lies right behind the parameter block: a prompt changes both,
and one copy brings them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from hjgc.plan_format.dtypes import ITEM_BYTES, DType
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import Buffer, Plan, State
from hjgc.runtime.backend import BackendRefused, MemoryRef, Rows, sizes_of
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle

ALIGNMENT = 256

Place = tuple[int, int, int, int]
"""Address, pitch, width and rows: `width` bytes of each of so many rows, `pitch` bytes apart."""


def lay_out(sizes: Sequence[int]) -> tuple[list[int], int]:
    """The offset of each piece, one after the other, and the bytes of all."""
    offsets: list[int] = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


class DeviceMemory:
    """The addresses of one plan's memory, and copies to and from it in the order of one stream."""

    def __init__(self, driver: Driver, plan: Plan, stream: Handle) -> None:
        self._driver, self._plan, self._stream = driver, plan, stream
        on_device = [(i, weight) for i, weight in enumerate(plan.weights) if weight.placement == "device"]
        pieces: list[tuple[str, int, int]] = [("weight", i, weight.bytes) for i, weight in on_device]
        pieces += [("constant", i, constant.length) for i, constant in enumerate(plan.constants)]
        histories = [i for i, state in enumerate(plan.states) if state.kind == "token_history"]
        others = [i for i in range(len(plan.states)) if i not in histories]
        pieces += [("state", i, plan.states[i].bytes) for i in others]
        pieces.append(("parameters", 0, plan.parameters.bytes))
        pieces += [("state", i, plan.states[i].bytes) for i in histories]
        offsets, total = lay_out([size for _, _, size in pieces])
        self._lasting = driver.allocate(total)
        try:
            self._arena = _allocate_arena(driver, plan)
        except BaseException:
            driver.free(self._lasting)
            raise
        self._addresses = {
            (space, index): self._lasting + offset for (space, index, _), offset in zip(pieces, offsets, strict=True)
        }
        self._fields = {field.name: field for field in plan.parameters.fields}
        for space, index, size in pieces:
            if space in ("state", "parameters"):
                driver.zero(self.address(space, index), size, stream)

    def close(self) -> None:
        self._driver.free(self._lasting)
        self._driver.free(self._arena)

    def address(self, space: str, index: int, phase: str = "") -> int:
        """Of a table entry; buffers are counted in `phase`."""
        if space == "buffer":
            return self.arena_address(self._plan.phase(phase).buffers[index])
        return self._addresses[space, index]

    def arena_address(self, buffer: Buffer) -> int:
        return self._arena + buffer.offset

    def dtype(self, space: str, index: int, phase: str = "") -> DType:
        """The element type of a table entry that has one."""
        tables = {"weight": self._plan.weights, "constant": self._plan.constants, "state": self._plan.states}
        return (self._plan.phase(phase).buffers if space == "buffer" else tables[space])[index].dtype

    def field_address(self, name: str) -> int:
        return self.address("parameters", 0) + self._fields[name].offset

    def write(self, address: int, data: Bytes) -> None:
        self._driver.write(address, np.ascontiguousarray(data), self._stream)

    def read(self, address: int, size: int) -> Bytes:
        return self._driver.read(address, size, self._stream)

    def read_fields(self) -> dict[str, int | float]:
        block = self.read(self.address("parameters", 0), self._plan.parameters.bytes)
        return {
            name: block[field.offset : field.offset + 4].view(field.dtype)[0].item()
            for name, field in self._fields.items()
        }

    def spans(self, ref: MemoryRef, start: int, tokens: Rows) -> list[tuple[int, int]]:
        """(address, bytes) of the rows of `place`."""
        address, pitch, width, rows = self.place(ref, start, tokens)
        return [(address + i * pitch, width) for i in range(rows)]

    def place(self, ref: MemoryRef, start: int, tokens: Rows) -> Place:
        """Where that is which a snapshot of `ref` holds: of a full cache the rows `start` to `start + tokens` of each
        head, of a buffer its shape for `tokens` rows, of anything else all of it."""
        base = self.address(ref.space, ref.index, ref.phase)
        if ref.space == "buffer":
            phase = self._plan.phase(ref.phase)
            buffer, sizes = phase.buffers[ref.index], sizes_of(phase, tokens)
            if isinstance(tokens, int):
                sizes |= {"start": start, "length": tokens}
            size = ITEM_BYTES[buffer.dtype] * prod(evaluate(axis, sizes) for axis in buffer.shape)
            return base, size, size, 1
        if ref.space == "state":
            assert isinstance(tokens, int), "a function has no states"
            return _state_place(self._plan.states[ref.index], base, start, tokens)
        return base, self._plan.parameters.bytes, self._plan.parameters.bytes, 1


def _allocate_arena(driver: Driver, plan: Plan) -> int:
    try:
        return driver.allocate(plan.arena_bytes)
    except BackendRefused as refused:
        if not plan.is_function:
            raise
        raise RunError(
            f"expected {plan.arena_bytes >> 20} MiB of the device for what a call of the largest sizes computes: "
            f"{refused}; compile with smaller ranges, --size NAME=LOW:HIGH"
        ) from None


def _state_place(state: State, base: int, start: int, tokens: int) -> Place:
    if state.kind != "full_cache":
        return base, state.bytes, state.bytes, 1
    heads, rows, size = state.shape
    row = size * ITEM_BYTES[state.dtype]
    return base + start * row, rows * row, tokens * row, heads
