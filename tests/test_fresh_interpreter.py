"""What does a fresh interpreter load along with `import hjgc` and `import hjgc.runtime`?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"

# What a serving process must not carry: the other side of the plan file, and everything that is slow to import.
HEAVY = {
    "hjgc.compiler",
    "hjgc.models",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "torch",
    "transformers",
    "triton",
}


def loaded_by(statement: str) -> set[str]:
    """The names in `sys.modules` after `statement` ran in an interpreter of its own, with nothing of ours installed."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("module", ["hjgc", "hjgc.plan_format", "hjgc.runtime"])
def test_importing_it_loads_neither_the_compiler_nor_any_heavy_package(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert loaded & HEAVY == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert loaded_by("import hjgc.runtime, hjgc.compiler, onnx") & HEAVY >= {"hjgc.compiler", "onnx"}
