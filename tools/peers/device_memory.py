"""How much of a GPU's memory has been taken since this process made its context?"""

from __future__ import annotations

from typing import Any

from hjgc.runtime.backends.cuda_driver import Driver, load_bindings


class DeviceMemory:
    """Makes the context, which takes memory itself that is not counted. What other processes take is counted too: let
    none run. Raises RunError without a device."""

    def __init__(self) -> None:
        self._driver: Any = Driver()
        self._cuda: Any = load_bindings()
        self._free = self._free_bytes()

    def taken(self) -> int:
        return self._free - self._free_bytes()

    def _free_bytes(self) -> int:
        self._driver.make_current()
        _, free, _ = self._cuda.cuMemGetInfo()
        return int(free)

    def close(self) -> None:
        self._driver.close()
