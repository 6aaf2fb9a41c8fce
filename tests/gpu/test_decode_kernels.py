"""Does every decode kernel mean on a device what its op means, with the same bits each time, with PDL and without?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from hjgc.compiler.build import build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import Axes
from tests import decode_cases
from tests.decode_cases import Case
from tests.gpu.launching import Device, Step, build_one

CASES = [
    *(case for dtype in ("float16", "bfloat16") for case in decode_cases.large_cases(dtype)),
    partial(decode_cases.rotary_table, 1, 64, 4000),
    *decode_cases.sampling_cases(),
]


def variants(case: Case, capable: bool) -> list[Axes]:
    """Without PDL, and with it and all that it brings, where the device has it."""
    with_pdl = {"pdl": True, **({"ahead": 64} if "ahead" in case.axes else {})}
    return [case.axes, {**case.axes, **with_pdl}] if capable else [case.axes]


@pytest.fixture(scope="module")
def device() -> Device:
    return Device()


@pytest.fixture(scope="module", autouse=True)
def built(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Everything compiled by all cores, into a cache that the tests then read."""
    target = device.driver.target
    wanted = [(case.template, axes) for make in CASES for case in [make()] for axes in variants(case, capable(device))]
    work = {(name, repr(sorted(axes.items()))): (name, axes) for name, axes in wanted}
    os.environ["HJGC_CACHE_DIR"] = str(tmp_path_factory.mktemp("kernels"))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(build_one, target=target), work.values(), chunksize=2))
    yield
    del os.environ["HJGC_CACHE_DIR"]


def capable(device: Device) -> bool:
    return int(device.driver.target.removeprefix("sm_")) >= 90


def run(device: Device, case: Case, axes: Axes, times: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the written operands and the parameter block hold after `times` launches, each from the same beginning."""
    addresses = {name: device.upload(as_bytes(tensor)) for name, tensor in case.operands.items()}
    step = bound(device, case, axes, addresses)
    for _ in range(times):
        device.write_fields(case.fields)
        device.run([step])
    found = {name: as_tensor(device.read(addresses[name], t.nbytes), t) for name, t in outputs(case).items()}
    fields = device.read_fields()
    for address in addresses.values():
        device.driver.free(address)
    return found, fields


def bound(device: Device, case: Case, axes: Axes, addresses: dict[str, int]) -> Step:
    declared, kernel = template(case.template), build(case.template, axes, device.driver.target)
    values: list[int | float] = []
    for parameter in declared.present(axes):
        match parameter.source:
            case "operand":
                values.append(addresses[parameter.name])
            case "field":
                values.append(device.field(parameter.name))
            case "attribute":
                values.append(case.attributes[parameter.name])
            case "tensor_map" | "size":
                raise AssertionError(f"no kernel for one row takes a {parameter.source}")
    return device.step(kernel, decode_cases.grid(case), values)


def outputs(case: Case) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in case.operands.items() if name in decode_cases.written(case)}


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def as_tensor(data: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(data).view(like.dtype).view(like.shape)


@pytest.mark.parametrize("make", CASES, ids=decode_cases.name_of)
def test_a_kernel_means_what_its_op_means_and_gives_the_same_bits_with_pdl_and_twice(
    device: Device, make: partial[Case]
) -> None:
    case = make()
    first, fields = run(device, case, case.axes)
    decode_cases.assert_close(case, first)
    right = decode_cases.expected(case)[1]
    assert (fields["start"], fields["length"]) == (right["start"], right["length"])
    for axes in variants(case, capable(device)):
        again, fields = run(device, case, axes, times=2)
        assert (fields["start"], fields["length"]) == (right["start"], right["length"])
        for name, tensor in first.items():
            assert as_bytes(tensor).tobytes() == as_bytes(again[name]).tobytes(), f"{name}, {axes}"


@pytest.mark.parametrize("start", [63, 126, 127, 400])
def test_attention_that_guessed_the_length_from_before_a_step_corrects_itself(device: Device, start: int) -> None:
    """The sampler steps `start` while attention, which overlaps it, has already looked."""
    first, second = decode_cases.sample(1111, start), decode_cases.attention(32, 32, 128, start + 1, "float16")
    steps: list[Step] = []
    addresses: list[dict[str, int]] = []
    for case in (first, second):
        addresses.append({name: device.upload(as_bytes(tensor)) for name, tensor in case.operands.items()})
        steps.append(bound(device, case, variants(case, capable(device))[-1], addresses[-1]))
    executable = device.graph(steps)
    for _ in range(20):
        device.write_fields(first.fields)
        device.driver.replay(executable, device.stream)
        found = {n: as_tensor(device.read(addresses[1][n], t.nbytes), t) for n, t in outputs(second).items()}
        decode_cases.assert_close(second, found)
        assert device.read_fields()["start"] == start + 1


def test_a_seed_draws_with_the_frequencies_of_the_softmax(device: Device) -> None:
    case = decode_cases.sample(8, temperature=1.0, spread=0.5)
    drawn = [
        run(device, decode_cases.sample(8, temperature=1.0, spread=0.5, seed_low=i), case.axes) for i in range(400)
    ]
    counts = torch.bincount(torch.tensor([int(found["sampled"]) for found, _ in drawn]), minlength=8)
    share = torch.softmax(case.operands["logits"][0], 0)
    # Four standard deviations of a count.
    assert ((counts - 400 * share).abs() <= 4 * (400 * share * (1 - share)).sqrt() + 1).all()
