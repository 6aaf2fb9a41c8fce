"""Do weights arrive whole, turned and converted, however they are cut, and is little held on the way?"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
import torch

from hjgc.plan_format import PlanError
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.plan_format.structs import Source, Weight
from hjgc.runtime.backends import cuda_weights
from hjgc.runtime.backends.cuda_driver import Driver, DriverError
from hjgc.runtime.backends.cuda_memory import DeviceMemory
from hjgc.runtime.backends.cuda_weights import load_weights
from tests.runtime.fake_driver import FakeDriver
from tests.runtime.norms import norms_plan

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FILE = "weights.bin"
SIZE = 40_000


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def values(tmp_path: Path) -> torch.Tensor:
    """The file as bytes: random numbers between -4 and 4 in any of the types."""
    bits = np.random.default_rng(3).integers(0, 1 << 16, SIZE // 2, np.uint16)
    bits = bits & 0x807F | 0x3F00
    bits.tofile(tmp_path / FILE)
    return torch.from_numpy(bits.view(np.uint8))


def load(folder: Path, driver: FakeDriver, *weights: Weight) -> list[bytes]:
    """What lies on the device where the weights belong."""
    plan = norms_plan(folder)
    plan = msgspec.structs.replace(plan, files=(fingerprint(folder / FILE, FILE),), weights=weights)
    memory = DeviceMemory(cast(Driver, driver), plan, "stream")
    load_weights(cast(Driver, driver), plan, folder / "plan.hjg", folder, memory)
    return [driver.read(memory.address("weight", i), w.bytes, "").tobytes() for i, w in enumerate(weights)]


def packed(values: torch.Tensor, weight: Weight) -> bytes:
    """The weight as its words say."""
    parts: list[torch.Tensor] = []
    for source in weight.sources:
        part = values[source.offset : source.offset + source.length].clone().view(TORCH[source.dtype])
        part = part.view(source.shape)[source.slice_start : source.slice_stop]
        parts.append((part.T if source.transpose else part).to(TORCH[weight.dtype]))
    return torch.cat(parts).contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def weight(dtype: str, shape: tuple[int, ...], *sources: Source) -> Weight:
    size = int(np.prod(shape)) * TORCH[dtype].itemsize
    return Weight("w", dtype, shape, size, sources)  # type: ignore[arg-type]


def source(dtype: str, shape: tuple[int, ...], offset: int = 0, **view: int | bool) -> Source:
    length = int(np.prod(shape)) * TORCH[dtype].itemsize
    return Source(0, offset, length, dtype, shape, **view)  # type: ignore[arg-type]


CASES = [
    weight("float32", (10,), source("float32", (10,))),
    weight("float16", (60, 70), source("float16", (60, 70), 128)),
    weight("float16", (60, 70), source("bfloat16", (60, 70), 128)),
    weight("bfloat16", (60, 70), source("float32", (60, 70), 64)),
    weight("float32", (60, 70), source("bfloat16", (60, 70), 64)),
    weight("float16", (30, 70), source("float32", (60, 70), 0, slice_start=20, slice_stop=50)),
    weight("float16", (70, 60), source("float16", (60, 70), 2, transpose=True)),
    weight("float16", (70, 60), source("bfloat16", (60, 70), 0, transpose=True)),
    weight("float32", (70, 25), source("float32", (60, 70), 12, slice_start=30, slice_stop=55, transpose=True)),
    weight("float16", (3, 600), source("float16", (600, 3), 0, transpose=True)),
    weight("float16", (2, 3, 40), source("float16", (2, 3, 40))),
    weight(
        "bfloat16",
        (95, 40),
        source("bfloat16", (30, 40)),
        source("float16", (40, 45), 4000, transpose=True),
        source("float32", (50, 40), 8000, slice_start=5, slice_stop=25),
    ),
]


@pytest.mark.parametrize("slot", [64, 1000, 1 << 20])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_weight_arrives_as_its_sources_say_however_it_is_cut(
    number: int, slot: int, tmp_path: Path, driver: FakeDriver, values: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_weights, "SLOT_BYTES", slot)
    (found,) = load(tmp_path, driver, CASES[number])
    assert found == packed(values, CASES[number])


def test_many_weights_through_few_slots_never_overwrite_what_is_still_under_way(
    tmp_path: Path, driver: FakeDriver, values: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_weights, "SLOT_BYTES", 96)
    assert load(tmp_path, driver, *CASES) == [packed(values, case) for case in CASES]
    assert driver.most_locked == cuda_weights.READERS * cuda_weights.SLOTS_EACH * 96
    assert driver.log.count("allocate_host") == driver.log.count("free_host")
    assert driver.log.count("make_event") == driver.log.count("drop_event")


def test_large_blocks_are_transposed_in_parts(tmp_path: Path, driver: FakeDriver, values: torch.Tensor) -> None:
    large = weight("float16", (1100, 15), source("float16", (15, 1100), 6, transpose=True))
    assert load(tmp_path, driver, large) == [packed(values, large)]


def test_a_file_that_ends_early_is_named_with_its_weight(
    tmp_path: Path, driver: FakeDriver, values: torch.Tensor
) -> None:
    for view in ({}, {"transpose": True}):
        beyond = weight("float16", (100, 100), source("float16", (100, 100), SIZE - 400, **view))
        with pytest.raises(PlanError, match=rf"{FILE}: w: cannot be read: "):
            load(tmp_path, driver, beyond)
    assert driver.log.count("allocate_host") == driver.log.count("free_host")


def test_whole_numbers_are_not_converted(tmp_path: Path, driver: FakeDriver, values: torch.Tensor) -> None:
    whole = weight("float16", (10,), Source(0, 0, 40, "int32", (10,)))
    with pytest.raises(PlanError, match="expected float16, found int32: only floating-point weights are converted"):
        load(tmp_path, driver, whole)


def test_a_driver_that_refuses_a_copy_is_heard(tmp_path: Path, driver: FakeDriver, values: torch.Tensor) -> None:
    driver.refuses = {"send"}
    with pytest.raises(DriverError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        load(tmp_path, driver, CASES[0])
    assert driver.log.count("allocate_host") == driver.log.count("free_host")
