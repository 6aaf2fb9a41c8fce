"""What must be installed for what, and which command brings it?

The same lines as in pyproject.toml, which an installation from a source tree cannot ask for; a test compares them.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Requirement:
    """`text` is the requirement as pip reads it, `module` what it is imported as. `extra` is empty for the core."""

    text: str
    module: str
    extra: str
    purpose: str

    @property
    def package(self) -> str:
        return re.split(r"[\[<>=]", self.text)[0]

    def installed(self) -> str | None:
        """The installed version, without importing it."""
        from importlib import metadata  # slow to import, and `hjgc --help` asks for no version

        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def accepts(self, version: str) -> bool:
        """Whether the version lies in the range. Compares the numbers only: `2.13.0+cpu` is `2.13.0`."""
        limits = re.findall(r"([<>]=?)([\d.]+)", self.text)
        return all(_holds(_numbers(version), sign, _numbers(limit)) for sign, limit in limits)


CORE = "every command"
REQUIREMENTS = (
    Requirement("click>=8.1.8", "click", "", CORE),
    Requirement("msgpack>=1.1", "msgpack", "", CORE),
    Requirement("msgspec>=0.19", "msgspec", "", CORE),
    Requirement("numpy>=2.0", "numpy", "", CORE),
    Requirement("onnx>=1.19", "onnx", "", "compile"),
    Requirement("onnx-ir>=1.0", "onnx_ir", "", "compile"),
    Requirement("onnxscript>=0.7", "onnxscript", "", "compile"),
    Requirement("rich>=14.0", "rich", "", CORE),
    Requirement("tokenizers>=0.22", "tokenizers", "", "run"),
    Requirement("torch>=2.11,<=2.13.0", "torch", "cpu", "export, and serving on the CPU"),
    Requirement("triton>=3.6", "triton", "aot", "building GPU kernels"),
    Requirement("cuda-bindings>=13.0,<14", "cuda.bindings", "cuda", "serving on an NVIDIA GPU"),
    Requirement("nvidia-cuda-nvrtc>=13.0,<14", "cuda.bindings.nvrtc", "aot", "building kernels for Hopper"),
    Requirement("onnxruntime>=1.23", "onnxruntime", "ort", "islands, and verify --against"),
    Requirement(
        "onnxruntime-gpu[cuda,cudnn]>=1.24", "onnxruntime", "ort-gpu", "islands on a GPU; instead of onnxruntime"
    ),
    Requirement("matplotlib>=3.10", "matplotlib", "plot", "bench --plot"),
    Requirement("ai-edge-model-explorer>=0.1.34", "model_explorer", "explorer", "plans in Model Explorer"),
    Requirement("psutil>=7.0", "psutil", "dev", "working on hjgc"),
    Requirement("pyright[nodejs]>=1.1.414", "pyright", "dev", "working on hjgc"),
    Requirement("pytest>=8.4", "pytest", "dev", "working on hjgc"),
    Requirement("ruff>=0.17", "ruff", "dev", "working on hjgc"),
    Requirement("safetensors>=0.8", "safetensors", "dev", "working on hjgc"),
    Requirement("selenium>=4.30", "selenium", "dev", "working on hjgc"),
    Requirement("transformers>=5.17", "transformers", "dev", "bench's peer, and working on hjgc"),
)


def pip_command(*requirements: str) -> str:
    """What to type to install them for this Python."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])


def for_module(module: str) -> Requirement | None:
    """The requirement that brings the module, or None if it is none of ours."""
    top = module.partition(".")[0]
    return next((known for known in REQUIREMENTS if known.module.partition(".")[0] == top), None)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    return tuple(numbers + [0] * (4 - len(numbers)))


def _holds(version: tuple[int, ...], sign: str, limit: tuple[int, ...]) -> bool:
    return {"<": version < limit, "<=": version <= limit, ">": version > limit, ">=": version >= limit}[sign]
