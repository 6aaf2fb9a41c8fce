"""How do weights get from their files into device memory?

By plain copies, one source after the other, each read through the page cache, sliced and transposed on the host.
Element types are never converted here: a plan that asks for it is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hjgc.plan_format.dtypes import ITEM_BYTES
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.fingerprint import check_weight_file
from hjgc.plan_format.structs import Plan, Source, Weight
from hjgc.runtime.backends.cuda_driver import Bytes
from hjgc.runtime.backends.cuda_memory import DeviceMemory

RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def load_weights(plan: Plan, path: Path, root: Path, memory: DeviceMemory) -> None:
    """Fill every weight. Raises PlanError for a missing file, one that is not what was compiled, or a conversion."""
    for file in plan.files:
        check_weight_file(file, root, path)
    for index, weight in enumerate(plan.weights):
        address = memory.address("weight", index)
        for source in weight.sources:
            data = read_source(plan, weight, source, root)
            memory.write(address, data)
            address += data.nbytes


def read_source(plan: Plan, weight: Weight, source: Source, root: Path) -> Bytes:
    """The bytes that the source adds to the packed weight. Raises PlanError."""
    path = root / plan.files[source.file].name
    if source.dtype != weight.dtype:
        raise PlanError(
            path,
            f"expected {weight.dtype}, found {source.dtype}: weights are not converted on CUDA",
            field=weight.name,
            next_step=f"compile with --dtype {source.dtype}",
        )
    kind = RAW[ITEM_BYTES[source.dtype]]
    try:
        values = np.memmap(path, kind, "r", source.offset, source.shape)
    except (OSError, ValueError) as error:
        raise PlanError(path, f"cannot be read: {error}", field=weight.name) from None
    rows = values[source.slice_start : source.slice_stop]
    return np.ascontiguousarray(rows.T if source.transpose else rows).view(np.uint8).reshape(-1)
