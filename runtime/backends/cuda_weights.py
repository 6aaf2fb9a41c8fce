"""How do weights get from their files into device memory?

In pieces: reader threads fill page-locked slots, from the page cache or the disk, and each slot's copy to the device
runs in a stream of its own while the next is filled. What has to be transposed or converted is on the way, within the
piece, so that the host never holds more than the slots and one piece a thread.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.structs import Plan, Source, Weight
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, Handle
from hjgc.runtime.backends.cuda_memory import DeviceMemory
from hjgc.runtime.backends.cuda_staging import Slots
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
class Piece:
    """The part of a source that fills `bytes` at `address`: `rows` x `columns` of the source's matrix if that is
    transposed, else a stretch of it, as so many `rows` of one element."""

    weight: Weight
    source: Source
    address: int
    bytes: int
    rows: slice
    columns: slice


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
    if source.dtype != weight.dtype and not {source.dtype, weight.dtype} <= set(FLOATS):
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
            scratch = np.empty(SLOT_BYTES, np.uint8)  # costs nothing before it is touched
            while (piece := self._next()) is not None:
                number = slots.next()
                self._driver.wait_event(slots.events[number])
                filled = slots.pieces[number][: piece.bytes]
                self._fill(filled, piece, scratch)
                self._driver.send(piece.address, filled, self._stream)
                self._driver.record(slots.events[number], self._stream)
        except BaseException:
            self._failed = True
            raise

    def _next(self) -> Piece | None:
        with self._lock:
            return None if self._failed else next(self._pieces, None)

    def _fill(self, target: Bytes, piece: Piece, scratch: Bytes) -> None:
        of, to = piece.source.dtype, piece.weight.dtype
        data = target if of == to else scratch[: piece.bytes // ITEM_BYTES[to] * ITEM_BYTES[of]]
        try:
            if piece.source.transpose:
                self._transpose(data, piece)
            else:
                self._copy(data, piece)
        except (OSError, ValueError) as error:
            path, _ = self._files[piece.source.file]
            raise PlanError(path, f"cannot be read: {error}", field=piece.weight.name) from None
        if data is not target:
            convert(data, of, target, to)

    def _copy(self, target: Bytes, piece: Piece) -> None:
        offset = piece.source.offset + piece.rows.start * ITEM_BYTES[piece.source.dtype]
        _, file = self._files[piece.source.file]
        done = 0
        while done < target.nbytes:
            count = os.preadv(file, [target[done:].data], offset + done)
            if not count:
                raise OSError(f"expected {offset + target.nbytes} bytes or more, found its end after {offset + done}")
            done += count

    def _transpose(self, target: Bytes, piece: Piece) -> None:
        """Block by block, so that what is read and what is written both stay in the core's caches meanwhile."""
        path, _ = self._files[piece.source.file]
        kind = RAW[ITEM_BYTES[piece.source.dtype]]
        values = np.memmap(path, kind, "r", piece.source.offset, piece.source.shape)[piece.rows, piece.columns]
        height, width = values.shape
        turned = target.view(kind).reshape(width, height)
        for row in range(0, height, BLOCK_ROWS):
            rows = slice(row, row + BLOCK_ROWS)
            for column in range(0, width, BLOCK_COLUMNS):
                columns = slice(column, column + BLOCK_COLUMNS)
                turned[columns, rows] = values[rows, columns].T


def cut_weights(plan: Plan, memory: DeviceMemory) -> Iterator[Piece]:
    """Every weight in pieces that fit into a slot, in the order of the plan, and of the bytes in the packed weight."""
    for index, weight in enumerate(plan.weights):
        address = memory.address("weight", index)
        for source in weight.sources:
            size = ITEM_BYTES[weight.dtype]
            most = SLOT_BYTES // max(size, ITEM_BYTES[source.dtype])
            for rows, columns in _transposed(source, most) if source.transpose else _stretches(source, most):
                count = (rows.stop - rows.start) * (columns.stop - columns.start) * size
                yield Piece(weight, source, address, count, rows, columns)
                address += count


def _stretches(source: Source, most: int) -> Iterator[tuple[slice, slice]]:
    row = math.prod(source.shape[1:])
    low, high, _ = slice(source.slice_start, source.slice_stop).indices(source.shape[0])
    for begin in range(low * row, high * row, most):
        yield slice(begin, min(begin + most, high * row)), slice(0, 1)


def _transposed(source: Source, most: int) -> Iterator[tuple[slice, slice]]:
    """As many columns at once as fit, with all their rows; parts of one where not even one does."""
    low, high, _ = slice(source.slice_start, source.slice_stop).indices(source.shape[0])
    width = source.shape[1]
    tall, wide = min(high - low, most), max(1, most // max(1, high - low))
    for column in range(0, width, wide):
        for row in range(low, high, max(1, tall)):
            yield slice(row, min(row + tall, high)), slice(column, min(column + wide, width))
