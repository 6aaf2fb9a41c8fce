"""Where do ONNX Runtime's logits land, and how does the host come by their last row?

It computes [1, rows, vocabulary], a row for each token of a prompt, of which the last alone chooses the next token.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hjgc.runtime.backends.cuda_driver import Driver

Bytes = NDArray[np.uint8]


class Logits(Protocol):
    """Memory that is asked for before anything is timed, and stays where it is while it is large enough."""

    def room(self, rows: int) -> int:
        """The address of memory for so many rows. What it held may be lost."""
        ...

    def last(self, rows: int) -> Bytes:
        """The last of so many rows, on the host. To be used before the next step."""
        ...

    def close(self) -> None: ...


class HostLogits:
    """In the host's memory. Implements `Logits`."""

    def __init__(self, row_bytes: int) -> None:
        self._row = row_bytes
        self._memory: Bytes = np.zeros(0, np.uint8)

    def room(self, rows: int) -> int:
        if rows * self._row > self._memory.nbytes:
            self._memory = np.zeros(rows * self._row, np.uint8)
        return self._memory.ctypes.data

    def last(self, rows: int) -> Bytes:
        return self._memory[(rows - 1) * self._row : rows * self._row]

    def close(self) -> None:
        self._memory = np.zeros(0, np.uint8)


class DeviceLogits:
    """In the GPU's memory: a row is fetched into page-locked memory, the others stay. It takes the driver over.
    Implements `Logits`."""

    def __init__(self, driver: Driver, row_bytes: int) -> None:
        self._driver, self._row = driver, row_bytes
        self._stream: Any = driver.make_stream()
        self._landing = driver.allocate_host(row_bytes)
        self._address = self._size = 0

    def room(self, rows: int) -> int:
        size = rows * self._row
        if size > self._size:
            self._release()
            self._address, self._size = self._driver.allocate(size), size
        return self._address

    def last(self, rows: int) -> Bytes:
        """ONNX Runtime waits for its own stream at the end of a run: the row is there."""
        self._driver.fetch(self._landing, self._address + (rows - 1) * self._row, self._stream)
        self._driver.wait(self._stream)
        return self._landing

    def _release(self) -> None:
        if self._size:
            self._driver.free(self._address)
        self._address = self._size = 0

    def close(self) -> None:
        self._release()
        self._driver.free_host(self._landing)
        self._driver.drop_stream(self._stream)
        self._driver.close()
