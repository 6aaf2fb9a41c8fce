"""How do tests get a function from a few lines of ONNX's own text?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

import hjgc
from hjgc.runtime.function import Function

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
Made = Callable[..., Function]
AROUND = """around (float[N,4] a, bool go) => (y) {
    t = Exp(a)
    r = If(go) <
        then_branch = yes () => (float[N,4] u) { u = Sin(t) },
        else_branch = no () => (float[N,4] v) { v = Cos(t) }
    >
    y = Neg(r)
}"""
"""A branch between two launches."""


def write_function(
    folder: Path, text: str, sizes: Mapping[str, tuple[int, int]] | None = None, name: str = "plan.hjg"
) -> Path:
    """The plan of a graph."""
    model = onnx.parser.parse_model(HEADER + text)
    onnx.save_model(model, folder / "model.onnx")
    hjgc.compile(folder / "model.onnx", folder / name, kind="function", sizes=sizes)
    return folder / name


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """Makes functions, and closes them."""
    functions: list[Function] = []

    def make(text: str, **sizes: Any) -> Function:
        plan = write_function(tmp_path, text, sizes, f"plan{len(functions)}.hjg")
        functions.append(hjgc.load(plan))
        return functions[-1]

    yield make
    for function in functions:
        function.close()
