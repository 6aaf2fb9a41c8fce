"""How do weights, constants and states come to lie in host memory as torch tensors?"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.structs import Plan, Source, Weight
from hjgc.runtime.backends.dequantise import dequantised

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint64": torch.uint64,
    "uint32": torch.uint32,
    "uint16": torch.uint16,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
NO_RESERVE = 0x4000
"""Linux's MAP_NORESERVE, which this Python's mmap does not name."""
ALIGNMENT = 4096
"""Of each weight inside the one piece of memory that holds them all: one piece is what huge pages pay for."""


def check_memory(plan: Plan, place: Path) -> None:
    """A plan says what it needs: refuse more than the machine has before any of it is allocated. Of a function's arena
    only what its calls use is ever touched. Raises PlanError."""
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = plan.ledger.total - (plan.arena_bytes if plan.is_function else 0)
    if wanted > have:
        raise PlanError(
            place,
            f"expected a plan for this machine's {have >> 20} MiB, found one for {wanted >> 20} MiB",
            field="$.ledger.total",
            next_step="compile with a smaller --context or a narrower --dtype",
        )


def reserve(count: int) -> torch.Tensor:
    """Bytes of address space, of which the kernel gives memory for what is touched."""
    if not count or sys.platform != "linux":
        return allocate((count,), "uint8")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, count, flags=flags), np.uint8))


def allocate(shape: Sequence[int], dtype: str, *, clear: bool = False) -> torch.Tensor:
    """Host memory from numpy, which asks the kernel for huge pages where arrays are large."""
    kind = TORCH_DTYPES[dtype]
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if not count:
        return torch.empty(tuple(shape), dtype=kind)
    make = np.zeros if clear else np.empty
    return torch.from_numpy(make(count, np.uint8)).view(kind).view(tuple(shape))


def read_weights(plan: Plan, root: Path, place: Path) -> list[torch.Tensor]:
    """Every packed weight, its sources stacked and converted. Raises PlanError for files that are not those compiled
    against."""
    paths = [check_weight_file(file, root, place) for file in plan.files]
    maps = [_map(path) for path in paths]
    places = [0]
    for weight in plan.weights:
        places.append(-(-(places[-1] + weight.bytes) // ALIGNMENT) * ALIGNMENT)
    memory = allocate((places[-1],), "uint8")
    return [_pack(weight, maps, memory[place:]) for weight, place in zip(plan.weights, places, strict=False)]


def read_constants(plan: Plan, section: bytes) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    for constant in plan.constants:
        tensor = allocate(constant.shape, constant.dtype)
        data = np.frombuffer(section[constant.offset : constant.offset + constant.length], np.uint8)
        tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(data.copy()))
        tensors.append(tensor)
    return tensors


def _map(path: Path) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


def _pack(
    weight: Weight, maps: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]], memory: torch.Tensor
) -> torch.Tensor:
    packed = memory[: weight.bytes].view(TORCH_DTYPES[weight.dtype]).view(weight.shape)
    row = 0
    for source in weight.sources:
        rows = _view(source, maps)
        packed[row : row + rows.shape[0]].copy_(rows)
        row += rows.shape[0]
    return packed


def _view(source: Source, maps: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]]) -> torch.Tensor:
    """The source's part of a mapped file, sliced and transposed as it says; copied first if it lies unaligned, and
    computed if it is quantised."""
    if source.blocks is not None:
        low, high, _ = slice(source.slice_start, source.slice_stop).indices(source.shape[0])
        rows = dequantised(source, source.blocks, low, high, lambda file, at, size: maps[file][at : at + size])
        tensor = torch.from_numpy(rows)
    else:
        kind = TORCH_DTYPES[source.dtype]
        raw = maps[source.file][source.offset : source.offset + source.length]
        raw = raw if source.offset % kind.itemsize == 0 else raw.copy()
        tensor = torch.from_numpy(raw).view(kind).view(source.shape)[source.slice_start : source.slice_stop]
    return tensor.T if source.transpose else tensor
