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
from hjgc.plan_format.structs import Blocks, Part, Source, Weight
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


def numbers_of(values: torch.Tensor, source: Source, blocks: Blocks) -> torch.Tensor:
    """What a quantised source stands for, number by number."""

    def at(part: int, index: int, bits: int, signed: bool) -> int:
        byte = int(values[part + index * bits // 8])
        number = byte if bits == 8 else (byte >> 4 if index % 2 else byte & 15)
        return number - (1 << bits) if signed and number >= 1 << (bits - 1) else number

    rows, columns = source.shape
    along, across = (columns, rows) if blocks.axis == 1 else (rows, columns)
    groups = -(-along // blocks.size)
    scales = values[blocks.scales.offset : blocks.scales.offset + blocks.scales.length].clone()
    scales = (
        scales.view(TORCH[blocks.scales.dtype]).float().view((rows, groups) if blocks.axis == 1 else (groups, across))
    )
    filled = groups * blocks.size if blocks.axis == 1 else columns
    zero_row = -(-scales.shape[1] * blocks.bits // 8) * 8 // blocks.bits
    made = torch.empty(rows, columns)
    for r in range(rows):
        for c in range(columns):
            at_scale = (r, c // blocks.size) if blocks.axis == 1 else (r // blocks.size, c)
            zero = 0 if blocks.signed else 1 << (blocks.bits - 1)
            if blocks.zeros is not None:
                place = at_scale[0] * zero_row + at_scale[1]
                zero = at(blocks.zeros.offset, place, blocks.bits, blocks.signed)
            number = at(source.offset, r * filled + c, blocks.bits, blocks.signed)
            made[r, c] = torch.tensor(float(number - zero)) * scales[at_scale]
    return made


def quantised(bits: int, size: int, axis: int, *, zeros: bool, signed: bool, scales: str = "float32") -> Source:
    """A source [12, 10]."""
    rows, columns = 12, 10
    groups = (rows, -(-columns // size)) if axis == 1 else (-(-rows // size), columns)
    width = (groups[1] * size if axis == 1 else columns) * bits // 8
    kind = {"float32": 4, "float16": 2}[scales]
    scale = Part(0, 4000, groups[0] * groups[1] * kind, scales)  # type: ignore[arg-type]
    zero = Part(0, 9001, groups[0] * -(-groups[1] * bits // 8), "uint8") if zeros else None
    blocks = Blocks(bits, size, axis, scale, zero, signed)  # type: ignore[arg-type]
    return Source(0, 77, rows * width, "uint8", (rows, columns), blocks=blocks)


BLOCKED = {
    "4 bits, rows filled up": quantised(4, 4, 1, zeros=False, signed=False),
    "4 bits with zero points": quantised(4, 4, 1, zeros=True, signed=False, scales="float16"),
    "8 bits with zero points": quantised(8, 3, 1, zeros=True, signed=False),
    "signed, along the rows": quantised(4, 5, 0, zeros=False, signed=True),
    "signed with zero points, along the rows": quantised(4, 5, 0, zeros=True, signed=True),
    "8 bits, signed": quantised(8, 8, 1, zeros=False, signed=True),
}


@pytest.mark.parametrize("case", BLOCKED)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("slot", [cuda_weights.SLOT_BYTES, 130])
def test_a_quantised_weight_arrives_as_the_numbers_that_it_stands_for(
    case: str, transpose: bool, slot: int, tmp_path: Path, driver: FakeDriver, values: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cuda_weights, "SLOT_BYTES", slot)
    source = msgspec.structs.replace(BLOCKED[case], transpose=transpose, slice_start=1, slice_stop=11)
    assert source.blocks is not None
    wanted = numbers_of(values, source, source.blocks)[1:11]
    wanted = (wanted.T if transpose else wanted).to(torch.float16).contiguous()
    weight = Weight("w", "float16", tuple(wanted.shape), wanted.numel() * 2, (source,))
    assert load(tmp_path, driver, weight) == [wanted.view(-1).view(torch.uint8).numpy().tobytes()]


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
