"""What is this machine: its processor, its memory, its NVIDIA devices?"""

from __future__ import annotations

import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
"""Of the many, those that decide how fast a CPU multiplies matrices."""
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Processor:
    """`usable` cores are those this process may run on."""

    name: str
    architecture: str
    cores: int
    usable: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not say. `limit` is a container's."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True)
class Device:
    """A CUDA device. `target` is what to compile for it."""

    name: str
    target: str
    bytes: int


@dataclass(frozen=True)
class Cuda:
    """The driver's version and devices, or `problem`: why there are none, and what to do."""

    driver: str | None
    devices: tuple[Device, ...]
    problem: str | None


def processor() -> Processor:
    text = _read(Path("/proc/cpuinfo"))
    name = _field(text, "model name") or platform.processor() or "unknown"
    flags = set((_field(text, "flags") or _field(text, "Features") or "").split())
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return Processor(name, platform.machine(), cores, usable, tuple(flag for flag in FLAGS if flag in flags))


def memory() -> Memory:
    text = _read(Path("/proc/meminfo"))
    limit = next((int(words) for path in LIMITS if (words := _read(path).strip()).isdigit()), None)
    total = _kilobytes(text, "MemTotal") or _physical_memory()
    if limit is not None and total is not None and limit >= total:
        limit = None
    return Memory(total, _kilobytes(text, "MemAvailable"), limit)


def peak_memory() -> int | None:
    """The most bytes of the host's memory that this process has held, libraries included; None where the system does
    not say."""
    return _kilobytes(_read(Path("/proc/self/status")), "VmHWM")


def cuda() -> Cuda:
    """Ask NVIDIA's driver through cuda-bindings. Makes no context on any device."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        return Cuda(None, (), f"cuda-bindings cannot be imported ({error})")
    try:
        result = driver.cuInit(0)[0]
        if result != driver.CUresult.CUDA_SUCCESS:
            return Cuda(None, (), f"the NVIDIA driver refuses: {result.name}")
        version = _call(driver.cuDriverGetVersion())
        devices = tuple(_device(driver, number) for number in range(_call(driver.cuDeviceGetCount())))
    except Exception as error:  # cuda-bindings looks for libcuda at the first call, and raises its own errors
        return Cuda(None, (), _no_driver(error))
    return Cuda(f"{version // 1000}.{version % 1000 // 10}", devices, None if devices else "the driver sees no device")


def _no_driver(error: Exception) -> str:
    if "NotFound" in type(error).__name__:
        return "the NVIDIA driver is missing (libcuda is nowhere): install it from https://www.nvidia.com/drivers"
    return f"the NVIDIA driver cannot be used: {' '.join(str(error).split())}"


def _device(driver: Any, number: int) -> Device:
    device = _call(driver.cuDeviceGet(number))
    name: bytes = _call(driver.cuDeviceGetName(128, device))
    attribute = driver.CUdevice_attribute
    major = _call(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = _call(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    return Device(
        name.partition(b"\0")[0].decode("utf-8", "replace"),
        f"sm_{major}{minor}",
        _call(driver.cuDeviceTotalMem(device)),
    )


def _call(answer: tuple[Any, ...]) -> Any:
    """The value that came with a result code. Raises RuntimeError with the driver's own word for a failure."""
    result, value = answer
    if int(result) != 0:
        raise RuntimeError(result.name)
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _kilobytes(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
