"""Are a device's limits what its fastest round was, and are refusals told in one line?"""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from hjgc.plan_format.errors import HjgcError, RunError
from hjgc.tools.benching import card, limits, read_kernel
from hjgc.tools.benching.card import Card
from hjgc.tools.benching.limits import best, measure, parsed, product_rate

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


class FakeCard:
    """Memory without a device. Keeps a log of what was asked of it, runs of the same call once."""

    def __init__(self, free: int = 100 * read_kernel.BLOCK_BYTES) -> None:
        self.free_bytes, self.held = free, 0
        self.no_reader: str | None = None
        self.log: list[str] = []

    def _note(self, what: str) -> None:
        if self.log[-1:] != [what]:
            self.log.append(what)

    def memory(self) -> tuple[int, int]:
        return self.free_bytes, 2 * self.free_bytes

    def allocate(self, size: int) -> int:
        self.held += 1
        self._note(f"allocate {size}")
        return 256 * self.held

    def free(self, address: int) -> None:
        self.held -= 1

    def fill(self, address: int, size: int) -> None:
        self._note("fill")

    def reader(self, source: int, size: int) -> str:
        return "reader"

    def read(self, reader: str) -> None:
        self._note("read")

    def copy(self, to: int, source: int, size: int) -> None:
        self._note("copy")

    def pinned(self, size: int) -> int:
        self.held += 1
        return 1

    def free_pinned(self, address: int) -> None:
        self.held -= 1

    def upload(self, to: int, source: int) -> None:
        self._note("upload")

    def wait(self) -> None:
        pass


def test_reading_copying_and_feeding_are_measured_on_filled_memory_that_is_given_back():
    device = FakeCard()
    found = measure(device, lambda: (8e14, None))
    size = 33 * read_kernel.BLOCK_BYTES
    assert device.log == [f"allocate {size}", "fill", "read", "copy", "upload"] and device.held == 0
    assert found.read >= found.copy > 0 and found.link > 0 and found.matrix == 8e14 and found.notes == ()


def test_a_limit_that_cannot_be_measured_is_said_to_be_missing():
    found = measure(FakeCard(), lambda: (None, "torch is not installed"))
    assert found.matrix is None
    assert found.notes == ("no matrix rate: torch is not installed; the floors of prompts count reading only",)


def test_without_a_kernel_that_reads_the_copy_sets_the_floor():
    device = FakeCard()
    device.no_reader = "cuModuleLoadData: CUDA_ERROR_JIT_COMPILER_NOT_FOUND"
    found = measure(device, lambda: (1.0, None))
    assert found.read == found.copy and "JIT_COMPILER_NOT_FOUND; the floors take the copy's rate" in found.notes[0]


def test_a_full_device_is_an_error():
    with pytest.raises(RunError, match="expected free memory on the device"):
        measure(FakeCard(free=1000), lambda: (None, None))


def test_the_fastest_round_counts():
    ticks = itertools.chain.from_iterable((start, start + length) for start, length in zip(
        range(0, 100 * limits.ROUNDS, 100), [60, 30, 90] + [60] * limits.ROUNDS, strict=False
    ))  # fmt: skip
    assert best(lambda: None, lambda: None, lambda: next(ticks)) == 30 / limits.CALLS


def test_a_product_is_timed_by_whatever_torch_there_is():
    assert product_rate(torch, "cpu", 64, lambda: None) > 0


def test_a_torch_without_cuda_has_no_matrix_rate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert limits.matrix_rate() == (None, "the torch installed here has no CUDA")
    monkeypatch.setattr(limits, "find_spec", lambda name: None)
    assert limits.matrix_rate() == (None, "torch is not installed")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_the_kernel_that_reads_is_what_the_assembler_takes(tmp_path: Path, arch: str):
    (tmp_path / "read.ptx").write_text(read_kernel.ptx())
    command = [PTXAS if arch != "sm_100" else PTXAS.with_name("ptxas-blackwell"), f"-arch={arch}", "read.ptx"]
    ran = subprocess.run([*map(str, command), "-o", "read.cubin"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


class FakeDriver:
    """The verbs of cuda_driver.Driver that a card needs."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def __getattr__(self, verb: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._log.append(verb)
            return (1 << 20, 1 << 21) if verb == "free_bytes" else 4096

        return call


class FakeBindings:
    """Of cuda.bindings.driver, what the card calls by itself."""

    def __init__(self, log: list[str], status: int = 0) -> None:
        self._log, self._status = log, status

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[int, ...]:
            self._log.append(name)
            return (self._status,)

        return call


def fake_card(monkeypatch: pytest.MonkeyPatch, log: list[str], status: int = 0) -> Card:
    monkeypatch.setattr(card, "Driver", lambda: FakeDriver(log))
    monkeypatch.setattr(card, "load_bindings", lambda: FakeBindings(log, status))
    return Card()


def test_a_card_launches_copies_and_gives_back(monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []
    device = fake_card(monkeypatch, log)
    assert device.memory() == (1 << 20, 1 << 21)
    device.fill(4096, card.PATTERN + 5)
    device.read(device.reader(4096, read_kernel.BLOCK_BYTES))
    device.close()
    assert log == [
        "make_stream", "load_module", "function", "allocate", "free_bytes", "write", "cuMemcpyDtoDAsync", "wait",
        "configure", "launch", "free", "unload_module", "drop_stream", "close",
    ]  # fmt: skip


def test_a_driver_that_compiles_nothing_still_copies(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: FakeDriver, code: bytes) -> None:
        raise RunError("no compiler")

    monkeypatch.setattr(FakeDriver, "load_module", refuse, raising=False)
    device = fake_card(monkeypatch, [])
    device.copy(512, 256, 8)
    device.close()
    assert device.no_reader == "no compiler"


def test_what_the_driver_refuses_names_the_call(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RunError, match="cuMemcpyDtoDAsync: 2"):
        fake_card(monkeypatch, [], status=2).copy(512, 256, 8)


def test_limits_come_back_from_their_process():
    line = '{"read": 4.0, "copy": 3.0, "link": 2.0, "matrix": null, "notes": ["why"]}'
    assert parsed(f"a library says\n{line}\n", "", 0) == limits.Limits(4.0, 3.0, 2.0, None, ("why",))


@pytest.mark.parametrize(
    ("out", "err", "code", "words"),
    [
        ('{"error": "no NVIDIA driver found"}', "", 0, "limits cannot be measured: no NVIDIA driver found"),
        ("", "Traceback\nKilled", -9, "ended with exit code -9: Killed"),
    ],
)
def test_a_measurement_that_failed_says_why(out: str, err: str, code: int, words: str):
    with pytest.raises(HjgcError, match=words):
        parsed(out, err, code)


def test_the_process_tells_an_error_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def no_driver() -> None:
        raise RunError("no driver")

    monkeypatch.setattr(card, "load_bindings", no_driver)
    limits.main()
    assert capsys.readouterr().out == '{"error": "no driver"}\n'
