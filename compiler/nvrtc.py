"""How does CUDA C++ text become device code, on a machine that may have no GPU and no CUDA toolkit?

NVIDIA's run-time compiler is a Python package of its own. The text includes nothing and the code embeds neither paths
nor line numbers, so equal text gives equal bytes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from hjgc.plan_format.errors import CompileError

OPTIONS = ("--std=c++17",)


@dataclass(frozen=True)
class Code:
    ptx: str
    cubin: bytes


def version() -> str:
    """Of the package, since the compiler itself does not tell releases of 13.0 apart; or its own where it comes from
    elsewhere. Raises CompileError if it is not installed."""
    major, minor = _call(_nvrtc(), "nvrtcVersion")
    try:
        return importlib.metadata.version("nvidia-cuda-nvrtc")
    except importlib.metadata.PackageNotFoundError:
        return f"{major}.{minor}"


def compile_cuda(text: str, target: str) -> Code:
    """The text for `sm_NN` with all that this chip alone can do (`sm_NNa`). Raises CompileError: the compiler is not
    installed; RuntimeError with its words."""
    nvrtc = _nvrtc()
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={target}a")]
    program = _call(nvrtc, "nvrtcCreateProgram", text.encode(), b"kernel.cu", 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != 0:
            raise RuntimeError(_first_error(_read(nvrtc, program, "ProgramLog").decode()))
        ptx = _read(nvrtc, program, "PTX").rstrip(b"\0").decode()
        return Code(ptx, _read(nvrtc, program, "CUBIN"))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(nvrtc: Any, program: Any, what: str) -> bytes:
    data = b" " * _call(nvrtc, f"nvrtcGet{what}Size", program)
    _call(nvrtc, f"nvrtcGet{what}", program, data)
    return data


def _first_error(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line]
    return lines[0] if lines else log.strip()


def _call(nvrtc: Any, name: str, *arguments: Any) -> Any:
    """Call the compiler; its one result, its results, or None."""
    status, *results = getattr(nvrtc, name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name}: {status.name}")
    return results[0] if len(results) == 1 else tuple(results) or None


def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings raise errors of their own where there is no library to bind
        raise CompileError(
            "compiler for CUDA C++",
            f"building kernels for Hopper needs NVIDIA's run-time compiler ({str(error).splitlines()[0]})",
            next_step="pip install 'hjgc[aot]'",
        ) from None
    return nvrtc
