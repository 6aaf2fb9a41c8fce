"""What does doctor learn from NVIDIA's driver, and from a driver that is not there?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hjgc.tools import machine

driver = pytest.importorskip("cuda.bindings.driver")
OK = driver.CUresult.CUDA_SUCCESS
MAJOR = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR


def fake_driver(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A driver with two H200, or what `changes` make of it; NVIDIA's own codes and names."""
    functions: dict[str, Any] = {
        "cuInit": lambda flags: (OK,),
        "cuDriverGetVersion": lambda: (OK, 13010),
        "cuDeviceGetCount": lambda: (OK, 2),
        "cuDeviceGet": lambda number: (OK, number),
        "cuDeviceGetName": lambda length, device: (OK, b"NVIDIA H200\0\0".ljust(length, b" ")),
        "cuDeviceGetAttribute": lambda attribute, device: (OK, 9 if attribute == MAJOR else 0),
        "cuDeviceTotalMem": lambda device: (OK, 150_000_000_000 + device),
    }
    names = {"CUresult": driver.CUresult, "CUdevice_attribute": driver.CUdevice_attribute}
    module = SimpleNamespace(**functions | names | changes)
    monkeypatch.setattr("importlib.import_module", lambda name: module)


def raising(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_devices_come_with_name_target_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver(monkeypatch)
    devices = tuple(machine.Device("NVIDIA H200", "sm_90", 150_000_000_000 + number) for number in range(2))
    assert machine.cuda() == machine.Cuda("13.1", devices, None)


def test_a_driver_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver(monkeypatch, cuInit=lambda flags: (driver.CUresult.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,))
    assert machine.cuda().problem == "the NVIDIA driver refuses: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"


def test_a_driver_without_a_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver(monkeypatch, cuDeviceGetCount=lambda: (OK, 0))
    assert machine.cuda() == machine.Cuda("13.1", (), "the driver sees no device")


def test_a_missing_driver_is_said_with_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class DynamicLibNotFoundError(RuntimeError):
        """What cuda-bindings raises at its first call."""

    fake_driver(monkeypatch, cuInit=raising(DynamicLibNotFoundError("libcuda")))
    problem = machine.cuda().problem
    assert problem is not None
    assert problem.startswith("the NVIDIA driver is missing") and "https://www.nvidia.com/drivers" in problem


def test_a_call_that_fails_later_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver(monkeypatch, cuDeviceGetName=lambda *_: (driver.CUresult.CUDA_ERROR_INVALID_DEVICE, None))
    assert machine.cuda().problem == "the NVIDIA driver cannot be used: CUDA_ERROR_INVALID_DEVICE"


def test_bindings_that_are_not_installed_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", raising(ImportError("No module named 'cuda'")))
    assert machine.cuda().problem == "cuda-bindings cannot be imported (No module named 'cuda')"


def test_this_machine_has_cores_and_memory() -> None:
    found, memory = machine.processor(), machine.memory()
    assert 1 <= found.usable <= found.cores
    assert memory.total is None or memory.total > 1 << 28
