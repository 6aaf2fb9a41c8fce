"""Which chips may a plan be for, and what can be relied on of each?

`cpu`; `sm_NN`, one chip by its compute capability; `compute_NN`, every chip from that one on, through its driver.
"""

from __future__ import annotations

import re

TARGET = re.compile(r"cpu|(sm|compute)_[1-9][0-9]{1,2}")
PORTABLE = "compute_80"
"""PTX that every chip from sm_80 on can run, once its driver has translated it."""
HOPPER = "sm_90"
"""The chip that templates in CUDA C++ are written for."""
FIRST_WITH_PDL = 90


def chip_number(target: str) -> int:
    """The compute capability of `sm_NN` or `compute_NN`."""
    return int(target.rpartition("_")[2])


def has_pdl(target: str) -> bool:
    """Whether kernels may wait for their predecessor by themselves: not where the chip is not known."""
    return target.startswith("sm_") and chip_number(target) >= FIRST_WITH_PDL
