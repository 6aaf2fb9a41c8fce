"""Where in the arena does each activation live, and for how long?

Buffers are placed largest first, each at the lowest offset where nothing that lives at the same time is in the way
(greedy by size: Pisarchyk and Lee, 2020). Phases share one arena, since they never run at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hjgc.compiler.program import Program, Tensor
from hjgc.plan_format import sizes
from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.structs import Buffer

ALIGNMENT = 256


@dataclass(frozen=True)
class MemoryPlan:
    """The buffers of one phase and the bytes of arena they need."""

    buffers: tuple[Buffer, ...]
    bytes: int


def plan_memory(program: Program) -> MemoryPlan:
    """Offsets for every activation of a phase, at the largest size of its range. The result is checked."""
    ranges = {size.name: (size.low, size.high) for size in program.sizes}
    spans = _lifetimes(program)
    needs = _needs((tensor for tensor, _, _ in spans.values()), ranges)
    wanted = [_buffer(*span, needs[span[0].name]) for span in spans.values() if not span[0].base]
    placed: list[Buffer] = []
    for buffer in sorted(wanted, key=lambda b: (-b.bytes, b.first, b.name)):
        placed.append(_place(buffer, placed))
    order = {buffer.name: i for i, buffer in enumerate(wanted)}
    buffers = tuple(sorted(placed, key=lambda b: order[b.name]))
    overlap = find_overlap(buffers)
    assert overlap is None, f"live buffers overlap: {overlap}"
    size = max((b.offset + b.bytes for b in buffers), default=0)
    views = [span for span in spans.values() if span[0].base]
    return MemoryPlan((*buffers, *(_view(*span, buffers, order[span[0].base]) for span in views)), size)


def _view(tensor: Tensor, first: int, last: int, buffers: tuple[Buffer, ...], index: int) -> Buffer:
    base = buffers[index]
    return Buffer(tensor.name, tensor.dtype, tensor.shape, base.offset, base.bytes, first, last, index)


def find_overlap(buffers: tuple[Buffer, ...]) -> tuple[str, str] | None:
    """Two buffers that live at the same time and share a byte, or None: every pair is compared."""
    for i, a in enumerate(buffers):
        for b in buffers[:i]:
            together = a.first <= b.last and b.first <= a.last
            if together and a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes:
                return b.name, a.name
    return None


def _lifetimes(program: Program) -> dict[str, tuple[Tensor, int, int]]:
    """First and last use of each buffer by name, in order of first use. A view's uses are its owner's too; what the
    caller gives is there from the beginning, what it gets to the end."""
    spans: dict[str, tuple[Tensor, int, int]] = {}
    owners: dict[str, Tensor] = {}

    def use(tensor: Tensor, number: int) -> None:
        if tensor.space != "buffer":
            return
        if tensor.base:
            owner = owners[tensor.base]
            use(owner, number)
        else:
            owners[tensor.name] = tensor
        first = spans.get(tensor.name, (tensor, number, number))[1]
        spans[tensor.name] = (tensor, first, number)

    for end in program.arguments:
        use(end.tensor, 0)
    for number, step in enumerate(program.steps):
        for tensor in step.operands.values():
            use(tensor, number)
    for end in program.results:
        use(end.tensor, len(program.steps) - 1)
    return spans


def _needs(tensors: Iterable[Tensor], ranges: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Bytes of each owner. A view has as many elements, but its axes may be bounded less closely: (a - 2) * (b - 2)
    multiplied out is."""
    found: dict[str, int] = {}
    for tensor in tensors:
        owner = tensor.base or tensor.name
        need = math.prod(sizes.bounds(axis, ranges)[1] for axis in tensor.shape) * ITEM_BYTES[tensor.dtype]
        found[owner] = max(need, found.get(owner, 0))
    return found


def _buffer(tensor: Tensor, first: int, last: int, need: int) -> Buffer:
    return Buffer(tensor.name, tensor.dtype, tensor.shape, 0, -(-need // ALIGNMENT) * ALIGNMENT, first, last)


def _place(buffer: Buffer, placed: list[Buffer]) -> Buffer:
    offset = 0
    for other in sorted(placed, key=lambda b: b.offset):
        if other.first > buffer.last or other.last < buffer.first:
            continue
        if offset + buffer.bytes <= other.offset:
            break
        offset = max(offset, other.offset + other.bytes)
    return Buffer(buffer.name, buffer.dtype, buffer.shape, offset, buffer.bytes, buffer.first, buffer.last)
