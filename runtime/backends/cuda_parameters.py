"""How do the fields of the parameter block, and a prompt, reach the device in as few copies as can be?

Fields that lie side by side travel together, and the whole block together with a prompt, since the token history lies
right behind it: before the first kernel of a prompt there is one copy. Fields that are not named keep what the device
may have written.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hjgc.plan_format.errors import RunError
from hjgc.plan_format.structs import ParameterField, Plan
from hjgc.runtime.backend import Ids
from hjgc.runtime.backends.cuda_memory import DeviceMemory
from hjgc.runtime.backends.cuda_staging import Uploads

PACKING = {"int32": "i", "uint32": "I", "float32": "f"}
FIELD = 4
"""Bytes of every field."""


@dataclass(frozen=True)
class _Run:
    """Fields side by side, from `address` on."""

    address: int
    names: tuple[str, ...]
    packing: struct.Struct


class Parameters:
    """The parameter block of a plan, and its token history if it has one. For one thread at a time."""

    def __init__(self, plan: Plan, memory: DeviceMemory, uploads: Uploads) -> None:
        self._memory, self._uploads = memory, uploads
        self._fields = {field.name: field for field in plan.parameters.fields}
        self._runs: dict[tuple[str, ...], list[_Run]] = {}
        self._history, self._history_bytes = history_of(plan, memory)

    def write(self, values: Mapping[str, int | float], prompt: Ids | None = None) -> None:
        """Set fields, and begin the token history with a prompt, if there is one."""
        runs = self._runs_of(tuple(values))
        if prompt is not None and len(runs) == 1 and len(values) == len(self._fields):
            self._write_all(runs[0], values, prompt)
            return
        if prompt is not None:
            self.write_history(0, prompt)
        for run in runs:
            run.packing.pack_into(self._uploads.room().data, 0, *(values[name] for name in run.names))
            self._uploads.send(run.address, run.packing.size)

    def write_history(self, offset: int, ids: Ids) -> None:
        """Set token ids of the history from `offset` on."""
        data = np.asarray(ids, np.int32).view(np.uint8)
        self._check_room(4 * offset + data.nbytes)
        self._uploads.write(self._history + 4 * offset, data)

    def _write_all(self, block: _Run, values: Mapping[str, int | float], prompt: Ids) -> None:
        room, ids = self._uploads.room(), np.asarray(prompt, np.int32).view(np.uint8)
        self._check_room(ids.nbytes)
        behind = self._history - block.address
        block.packing.pack_into(room.data, 0, *(values[name] for name in block.names))
        room[block.packing.size : behind] = 0
        room[behind : behind + ids.nbytes] = ids
        self._uploads.send(block.address, behind + ids.nbytes)

    def _check_room(self, size: int) -> None:
        if size > self._history_bytes:
            held = self._history_bytes // 4
            raise RunError(f"expected at most {held} token ids, which the plan's history holds, found {size // 4}")

    def _runs_of(self, names: tuple[str, ...]) -> list[_Run]:
        found = self._runs.get(names)
        if found is None:
            fields = sorted((self._fields[name] for name in names), key=lambda field: field.offset)
            ends = [i for i, (a, b) in enumerate(pairwise(fields), 1) if b.offset != a.offset + FIELD]
            found = [self._run(fields[i:j]) for i, j in pairwise([0, *ends, len(fields)])] if fields else []
            self._runs[names] = found
        return found

    def _run(self, fields: Sequence[ParameterField]) -> _Run:
        packing = struct.Struct("<" + "".join(PACKING[field.dtype] for field in fields))
        return _Run(self._memory.field_address(fields[0].name), tuple(field.name for field in fields), packing)


def history_of(plan: Plan, memory: DeviceMemory) -> tuple[int, int]:
    """Where the token history lies, and its bytes; none behind the parameter block where a plan has none."""
    for index, state in enumerate(plan.states):
        if state.kind == "token_history":
            return memory.address("state", index), state.bytes
    return memory.address("parameters", 0) + plan.parameters.bytes, 0


def room_needed(plan: Plan, memory: DeviceMemory) -> int:
    """The most bytes that one write takes: the block and the whole history."""
    address, size = history_of(plan, memory)
    return address - memory.address("parameters", 0) + size
