"""What does `import hjgc` offer, and what does it load?"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hjgc

SRC = Path(__file__).parent.parent / "src"
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "transformers", "triton", "numpy", "tokenizers"}
SLOW_TO_IMPORT = HEAVY - {"numpy"}


def loaded_by(statement: str) -> set[str]:
    """The modules that an interpreter of its own has after `statement`."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_hjgc_loads_nothing_but_itself_and_its_version() -> None:
    loaded = loaded_by("import hjgc; hjgc.__version__; dir(hjgc)")
    assert {name for name in loaded if name.startswith("hjgc")} == {"hjgc", "hjgc._version"}
    assert loaded & HEAVY == set()


def test_the_names_that_serve_load_neither_the_compiler_nor_what_it_needs() -> None:
    loaded = loaded_by("import hjgc; hjgc.LLM, hjgc.SamplingParams(), hjgc.Completion, hjgc.load, hjgc.PlanError")
    assert loaded & SLOW_TO_IMPORT == set()
    assert {name for name in loaded if name.startswith(("hjgc.compiler", "hjgc.models", "hjgc.tools"))} == set()


@pytest.mark.parametrize("name", hjgc.__all__)
def test_every_public_name_is_there_under_its_name(name: str) -> None:
    value = getattr(hjgc, name)
    assert getattr(hjgc, name) is value
    own = {"compile": "compile_model"}.get(name, name)
    assert name == "__version__" or value.__name__ == own


def test_type_checkers_are_told_of_the_same_names_from_the_same_places() -> None:
    tree = ast.parse((SRC / "hjgc" / "__init__.py").read_text(encoding="utf-8"))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == hjgc._HOMES
    assert sorted(hjgc.__all__) == sorted([*told, "__version__"]) == dir(hjgc)


def test_another_name_is_missing_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'hjgc' has no attribute 'nonsense'"):
        _ = hjgc.nonsense  # type: ignore[attr-defined]


def test_every_error_may_be_caught_as_one() -> None:
    for error in (hjgc.InputError, hjgc.PlanError, hjgc.CompileError, hjgc.RunError, hjgc.Cancelled):
        assert issubclass(error, hjgc.HjgcError)
    for error in (hjgc.Cancelled, hjgc.DeadlineExceeded, hjgc.ContextFull, hjgc.SessionClosed):
        assert issubclass(error, hjgc.RunError)
