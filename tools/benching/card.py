"""What do the measurements of a device's limits ask of the CUDA driver?"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from hjgc.plan_format.errors import RunError
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, LaunchShape, load_bindings
from hjgc.tools.benching import read_kernel

PATTERN = 64 << 20


class Card:
    """One GPU and a stream of our own. `no_reader` says why there is no kernel that reads, if there is none. Raises
    RunError where there is no GPU, and with the driver's own word where it refuses."""

    def __init__(self) -> None:
        self._cuda: Any = load_bindings()
        self._driver = Driver()
        self._stream = self._driver.make_stream()
        self._module: Any = None
        self.no_reader: str | None = None
        try:
            self._module = self._driver.load_module(read_kernel.ptx().encode() + b"\0")
            self._reader = self._driver.function(self._module, read_kernel.ENTRY, 0)
        except RunError as error:  # the driver's compiler is a library of its own, which a container may lack
            self.no_reader = str(error)
        self.sink = self._driver.allocate(4)

    def memory(self) -> tuple[int, int]:
        """Bytes free, and bytes in all."""
        return self._driver.free_bytes()

    def allocate(self, size: int) -> int:
        return self._driver.allocate(size)

    def free(self, address: int) -> None:
        self._driver.free(address)

    def fill(self, address: int, size: int) -> None:
        """With random bytes: zeros are faster than numbers."""
        first = min(PATTERN, size)
        self._driver.write(address, np.random.default_rng(0).integers(0, 256, first, np.uint8), self._stream)
        done = first
        while done < size:
            piece = min(done, size - done)
            self.copy(address + done, address, piece)
            done += piece
        self.wait()

    def copy(self, to: int, source: int, size: int) -> None:
        (status,) = self._cuda.cuMemcpyDtoDAsync(to, source, size, self._stream)
        if int(status) != 0:
            raise RunError(f"cuMemcpyDtoDAsync: {getattr(status, 'name', status)}")

    def upload(self, to: int, source: Bytes) -> None:
        self._driver.send(to, source, self._stream)

    def reader(self, source: int, size: int) -> Any:
        """What `read` launches: the whole of `size` bytes, a multiple of read_kernel.BLOCK_BYTES."""
        shape = LaunchShape((size // read_kernel.BLOCK_BYTES, 1, 1), read_kernel.THREADS, 0)
        values = (ctypes.c_uint64(source), ctypes.c_uint64(self.sink))
        array = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        return self._driver.configure(shape, False, self._stream), array, values

    def read(self, reader: Any) -> None:
        config, array, _ = reader
        self._driver.launch(config, self._reader, ctypes.addressof(array))

    def pinned(self, size: int) -> Bytes:
        """Page-locked host memory."""
        return self._driver.allocate_host(size)

    def free_pinned(self, memory: Bytes) -> None:
        self._driver.free_host(memory)

    def wait(self) -> None:
        self._driver.wait(self._stream)

    def close(self) -> None:
        self._driver.free(self.sink)
        if self._module is not None:
            self._driver.unload_module(self._module)
        self._driver.drop_stream(self._stream)
        self._driver.close()
