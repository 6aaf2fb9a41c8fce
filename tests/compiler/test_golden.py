"""Does each stage say of a small model what it always said? What HJGC_DUMP writes, compared with tests/compiler/golden.

After a change that is meant: `HJGC_ACCEPT_GOLDEN=1 pytest tests/compiler/test_golden.py`, then read the difference in
git before it goes in.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hjgc.compiler import compile_model
from tests.compiler.exports import SMALL, exported

GOLDEN = Path(__file__).parent / "golden"
STAGES = ("recognise", "specialise", "lower", "classify", "plan_memory", "segment", "select_kernels", "emit")
ON_A_GPU = ("lower", "select_kernels", "segment")
"""The stages that a GPU among the targets changes."""
CASES = [
    *((variant, "cpu", stage) for variant in ("mha", "qknorm") for stage in STAGES),
    *((variant, "sm_90", stage) for variant in ("mha", "qknorm") for stage in ON_A_GPU),
]


@cache
def dumps(variant: str, target: str = "cpu") -> dict[str, str]:
    """The text that each stage left, by stage."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJGC_DUMP", f"{folder}/dump")
        compile_model(exported(variant) / "model.onnx", f"{folder}/plan.hjg", **SMALL, targets=(target,))
        files = sorted(Path(folder, "dump").iterdir())
        assert [path.name[:3] for path in files] == [f"{i:02}-" for i in range(1, len(files) + 1)]
        return {path.stem[3:]: path.read_text(encoding="utf-8") for path in files}


def name_of(variant: str, target: str, stage: str) -> str:
    return f"{variant}-{stage}.txt" if target == "cpu" else f"{variant}-{target}-{stage}.txt"


@pytest.mark.parametrize(("variant", "target", "stage"), CASES)
def test_the_dump_of_a_stage_is_the_golden_one(variant: str, target: str, stage: str) -> None:
    golden = GOLDEN / name_of(variant, target, stage)
    if os.environ.get("HJGC_ACCEPT_GOLDEN"):
        golden.write_text(dumps(variant, target)[stage], encoding="utf-8")
    assert dumps(variant, target)[stage].splitlines() == golden.read_text(encoding="utf-8").splitlines()


def test_every_stage_that_makes_something_dumps_it_in_order() -> None:
    assert list(dumps("mha")) == ["import", "normalise", *STAGES]


def test_there_is_no_golden_file_that_no_test_reads() -> None:
    wanted = {name_of(*case) for case in CASES}
    assert {path.name for path in GOLDEN.iterdir()} == wanted
