"""How do weights get from their files into device memory?

In pieces: reader threads fill page-locked slots, from the page cache or the disk, and each slot's copy to the device
runs in a stream of its own while the next is filled. What has to be transposed or converted is on the way, within the
piece, so that the host never holds more than the slots and two pieces a thread.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.structs import Plan, Source, Weight
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle
from hjgc.runtime.backends.cuda_memory import DeviceMemory
from hjgc.runtime.backends.cuda_staging import Slots
from hjgc.runtime.backends.dequantise import dequantised
from hjgc.runtime.backends.element_types import FLOATS, convert

READERS = 4
"""Threads. One copies some 10 GB/s out of the page cache, the bus takes 55."""
SLOTS_EACH = 2
SLOT_BYTES = 8 << 20
STAGING_BYTES = READERS * SLOTS_EACH * SLOT_BYTES
"""Page-locked host memory that is held while weights are loaded."""
BLOCK_ROWS, BLOCK_COLUMNS = 32, 512
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Turned:
    """`rows` x `columns` of a matrix to be transposed, which then lie as `columns` rows `pitch` bytes apart."""

    rows: int
    columns: int
    pitch: int


@dataclass(frozen=True)
class Piece:
    """`count` elements of a source, one after the other from byte `begin` of its file, to lie from `address` on. Of a
    quantised one whole rows, `begin` the first of them."""

    weight: Weight
    source: Source
    begin: int
    count: int
    address: int
    turned: Turned | None = None


def load_weights(driver: Driver, plan: Plan, path: Path, root: Path, memory: DeviceMemory) -> None:
    """Fill every weight. Raises PlanError for a missing file, one that is not what was compiled or cannot be read, and
    for a conversion of other than floating-point numbers."""
    for weight in plan.weights:
        for source in weight.sources:
            _check_types(weight, source, root / plan.files[source.file].name)
    with ExitStack() as undo:
        files = [_open(check_weight_file(file, root, path), undo) for file in plan.files]
        stream = driver.make_stream()
        undo.callback(driver.drop_stream, stream)
        slots: list[Slots] = []
        for _ in range(READERS):
            slots.append(Slots(driver, SLOTS_EACH, SLOT_BYTES))
            undo.callback(slots[-1].close)
        undo.callback(driver.wait, stream)  # undone first: copies under way read the slots
        pieces = cut_weights(plan, memory)
        loading = _Loading(driver, stream, files, pieces)
        with ThreadPoolExecutor(READERS, "hjgc-weights") as readers:
            for reader in [readers.submit(loading.read, own) for own in slots]:
                reader.result()


def _check_types(weight: Weight, source: Source, file: Path) -> None:
    stored = "float32" if source.blocks is not None else source.dtype
    if stored != weight.dtype and not {stored, weight.dtype} <= set(FLOATS):
        problem = f"expected {weight.dtype}, found {source.dtype}: only floating-point weights are converted"
        raise PlanError(file, problem, field=weight.name, next_step="compile the model again")


def _open(path: Path, undo: ExitStack) -> tuple[Path, int]:
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise PlanError(path, f"cannot be read: {error.strerror or error}") from None
    undo.callback(os.close, number)
    return path, number


class _Loading:
    """What the readers share: the pieces still to do, and whether one of them failed. `files`: path and descriptor."""

    def __init__(
        self, driver: Driver, stream: Handle, files: Sequence[tuple[Path, int]], pieces: Iterator[Piece]
    ) -> None:
        self._driver, self._stream, self._files, self._pieces = driver, stream, files, pieces
        self._lock = threading.Lock()
        self._failed = False

    def read(self, slots: Slots) -> None:
        """What one reader does, with slots of its own, until nothing is left."""
        try:
            self._driver.make_current()
            scratch = np.empty((2, SLOT_BYTES), np.uint8)  # costs nothing before it is touched
            while (piece := self._next()) is not None:
                number = slots.next()
                self._driver.wait_event(slots.events[number])
                filled = slots.pieces[number][: piece.count * ITEM_BYTES[piece.weight.dtype]]
                self._fill(filled, piece, scratch)
                if piece.turned is None:
                    self._driver.send(piece.address, filled, self._stream)
                else:
                    turned = piece.turned
                    self._driver.send_rows(piece.address, turned.pitch, filled, turned.columns, self._stream)
                self._driver.record(slots.events[number], self._stream)
        except BaseException:
            self._failed = True
            raise

    def _next(self) -> Piece | None:
        with self._lock:
            return None if self._failed else next(self._pieces, None)

    def _fill(self, target: Bytes, piece: Piece, scratch: NDArray[np.uint8]) -> None:
        """Read, convert, transpose: what comes last writes the slot, what comes before a part of the scratch memory."""
        blocks = piece.source.blocks
        of, to = piece.source.dtype if blocks is None else "float32", piece.weight.dtype
        converted = target if piece.turned is None else scratch[1, : target.nbytes]
        if blocks is None:
            data = converted if of == to else scratch[0, : piece.count * ITEM_BYTES[of]]
            self._read(data, piece.source.file, piece.begin, piece.weight.name)
        else:
            high = piece.begin + piece.count // piece.source.shape[1]
            rows = dequantised(piece.source, blocks, piece.begin, high, partial(self._read_part, piece.weight.name))
            data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        if data is not converted:
            convert(data, of, converted, to)
        if piece.turned is not None:
            _transpose(converted, target, ITEM_BYTES[to], piece.turned.rows, piece.turned.columns)

    def _read(self, target: Bytes, file: int, offset: int, name: str) -> None:
        """Fill the target from one of the files. Raises PlanError that names it and the weight."""
        path, number = self._files[file]
        try:
            read_into(target, number, offset)
        except OSError as error:
            raise PlanError(path, f"cannot be read: {error}", field=name) from None

    def _read_part(self, name: str, file: int, offset: int, length: int) -> Bytes:
        data = np.empty(length, np.uint8)
        self._read(data, file, offset, name)
        return data


def read_into(target: Bytes, file: int, offset: int) -> None:
    """Fill the target from the file. Raises OSError, also for a file that ends early."""
    done = 0
    while done < target.nbytes:
        count = os.preadv(file, [target[done:].data], offset + done)
        if not count:
            raise OSError(f"expected {offset + target.nbytes} bytes or more, found its end after {offset + done}")
        done += count


def _transpose(source: Bytes, target: Bytes, size: int, rows: int, columns: int) -> None:
    """Block by block, so that what is read and what is written both stay in the core's caches meanwhile."""
    given = source.view(RAW[size]).reshape(rows, columns)
    turned = target.view(RAW[size]).reshape(columns, rows)
    for row in range(0, rows, BLOCK_ROWS):
        across = slice(row, row + BLOCK_ROWS)
        for column in range(0, columns, BLOCK_COLUMNS):
            down = slice(column, column + BLOCK_COLUMNS)
            turned[down, across] = given[across, down].T


def cut_weights(plan: Plan, memory: DeviceMemory) -> Iterator[Piece]:
    """Every weight in pieces that fit into a slot, in the order of the plan and of the files."""
    for index, weight in enumerate(plan.weights):
        if weight.placement != "device":  # an island's, which the host keeps
            continue
        address = memory.address("weight", index)
        for source in weight.sources:
            cut = _cut_quantised if source.blocks is not None else _cut_transposed if source.transpose else _cut
            yield from cut(weight, source, address)
            low, high = _row_range(source)
            address += (high - low) * math.prod(source.shape[1:]) * ITEM_BYTES[weight.dtype]


def _cut(weight: Weight, source: Source, address: int) -> Iterator[Piece]:
    most, size = _most(weight, source), ITEM_BYTES[source.dtype]
    row = math.prod(source.shape[1:])
    first, last = (bound * row for bound in _row_range(source))
    for begin in range(first, last, most):
        place = address + (begin - first) * ITEM_BYTES[weight.dtype]
        yield Piece(weight, source, source.offset + begin * size, min(most, last - begin), place)


def _cut_transposed(weight: Weight, source: Source, address: int) -> Iterator[Piece]:
    """As many whole rows of the file as fit; parts of one where not even one does."""
    most, size = _most(weight, source), ITEM_BYTES[weight.dtype]
    (low, high), width = _row_range(source), source.shape[1]
    tall, wide = max(1, most // max(1, width)), min(width, most)
    for row in range(low, high, tall):
        rows = min(tall, high - row)
        for column in range(0, width, max(1, wide)):
            columns = min(wide, width - column)
            begin = source.offset + (row * width + column) * ITEM_BYTES[source.dtype]
            place = address + (column * (high - low) + row - low) * size
            turned = Turned(rows, columns, (high - low) * size)
            yield Piece(weight, source, begin, rows * columns, place, turned)


def _cut_quantised(weight: Weight, source: Source, address: int) -> Iterator[Piece]:
    """Whole rows, as many as fit: what a block has in common is read once for each piece."""
    (low, high), width, size = _row_range(source), source.shape[1], ITEM_BYTES[weight.dtype]
    tall = max(1, SLOT_BYTES // (4 * width))
    for row in range(low, high, tall):
        rows = min(tall, high - row)
        turned = Turned(rows, width, (high - low) * size) if source.transpose else None
        place = address + (row - low) * size * (1 if source.transpose else width)
        yield Piece(weight, source, row, rows * width, place, turned)


def _most(weight: Weight, source: Source) -> int:
    """Elements that fit into a slot, before and after they are converted."""
    return SLOT_BYTES // max(ITEM_BYTES[weight.dtype], ITEM_BYTES[source.dtype])


def _row_range(source: Source) -> tuple[int, int]:
    low, high, _ = slice(source.slice_start, source.slice_stop).indices(source.shape[0])
    return low, high
