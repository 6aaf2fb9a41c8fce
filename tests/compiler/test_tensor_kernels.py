"""Do the kernels of tensor ops mean what their ops mean (in Triton's interpreter), and do they build for every chip?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

import torch

from hjgc.compiler.build import build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.tiles import NoTemplate
from hjgc.plan_format.errors import CompileError
from tests import product_cases, tensor_cases
from tests.tensor_cases import BF16, CUMULATED, F32, I64, LONG, Case, Given, choose

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).with_name("tensor_on_cpu.py")
CASES = (*tensor_cases.CASES, *product_cases.CASES)
BY_NAME = {case.name: case for case in CASES}
BUILT = (
    "elementwise of the library", "elementwise that is a GELU", "elementwise in bfloat16", "elementwise in float64",
    "elementwise of truths", "transpose of keys", "gather of rows", "concat of caches", "pad that is reflect",
    "reduce in bfloat16", "reduce in float64", "softmax of a vocabulary", "arg_reduce of bytes",
    "cumulate of positions", "top_k of experts", "scatter_elements in rows", "scatter_nd of truths",
    "matmul of batches", "matmul_map with an activation", "matmul_parts",
    "norm_map of parts", "attention_rows with numbers added", "attention_rows in bfloat16",
)  # fmt: skip
ROWS = Given(F32, ("a", 5))


def test_cases_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(CASES)


def test_a_kernel_means_its_op_at_every_size() -> None:
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    run = subprocess.run(
        [sys.executable, PROGRAM], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", BUILT)
def test_it_builds(
    name: str, target: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    choice = choose(BY_NAME[name], target)
    built = build(choice.template, choice.axes, target)
    assert built.cubin[:4] == b"\x7fELF"
    assert (built.entry, built.pdl) == (choice.template, target == "sm_90")


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("elementwise of open sizes", "1 1 s0:24"),  # all operands alike: one axis
        ("elementwise with a bias", "1 s0 48"),
        ("elementwise of masks", "1 s2,s1:2 s1"),
        ("transpose of heads", "1 s1,3,s0 8"),
        ("transpose of keys", "s1:3 8 s0"),  # a tile that is turned
        ("slice of columns", "1 s0 8"),
        ("gather of rows", "1 s0 24"),
        ("concat of caches", "1 2 s2:8"),
        ("softmax inside", "1 s0,10 7"),
        ("reduce here and there", "1 4,6 3,5"),
    ],
)
def test_axes_that_lie_behind_each_other_are_one(name: str, tile: str) -> None:
    assert choose(BY_NAME[name]).axes["tile"] == tile


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (
            Case("an axis", "cumulate", (ROWS, Given(I64, ())), {"kind": "sum", "axis": 0, **CUMULATED}, sizes=LONG),
            "computed at run time",
        ),
        (
            Case(
                "many", "top_k", (ROWS,), {"axis": 0, "largest": True},
                (Given(F32, (3, 5)), Given(I64, (3, 5))), sizes=LONG, most=1 << 20,
            ),
            "up to 16384 numbers",
        ),
        (Case("nine", "concat", (Given(BF16, (1,)),) * 9, {"axis": 0}), "at most 8 operands"),
        (Case("a sum", "reduce", (Given(torch.uint32, (5,)),), {"kind": "sum", "axes": (0,), "keep": True}), "uint32"),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else None,
)  # fmt: skip
def test_what_no_kernel_computes_says_why(case: Case, why: str) -> None:
    with pytest.raises(NoTemplate, match=why):
        choose(case)


@pytest.mark.parametrize(
    ("name", "axis", "value"),
    [
        ("elementwise with a bias", "tile", "1 s0"),
        ("elementwise with a bias", "tile", "1 s1 48"),
        ("elementwise with a bias", "places", "0,0,48,1"),
        ("elementwise with a bias", "places", "0,0,48,1 0,0,1"),
        ("elementwise with a bias", "expression", "system(x0)"),
        ("elementwise with a bias", "x1", "none"),
        ("concat of caches", "operands", 3),
        ("gather of rows", "picked", "30"),
        ("pad with 0", "parts", "0,1,1"),
        ("reduce by sum", "places", "0,0,24,abs"),
    ],
)
def test_words_that_a_template_cannot_read_are_refused(name: str, axis: str, value: str | int) -> None:
    choice = choose(BY_NAME[name])
    with pytest.raises(CompileError):
        template(choice.template).check({**choice.axes, axis: value})
