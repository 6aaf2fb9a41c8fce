"""How much of a GPU's memory has been taken since this process made its context?"""

from __future__ import annotations

from hjgc.runtime.backends.cuda_driver import Driver


class DeviceMemory:
    """Makes the context, which takes memory itself that is not counted. What other processes take is counted too: let
    none run. Raises RunError without a device."""

    def __init__(self) -> None:
        self._driver = Driver()
        self._free = self._free_bytes()

    def taken(self) -> int:
        return self._free - self._free_bytes()

    def _free_bytes(self) -> int:
        self._driver.make_current()
        return self._driver.free_bytes()[0]

    def close(self) -> None:
        self._driver.close()
