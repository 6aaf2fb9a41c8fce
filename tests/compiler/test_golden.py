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
STAGES = ("recognise", "specialise", "classify", "plan_memory", "segment", "emit")


@cache
def dumps(variant: str) -> dict[str, str]:
    """The text that each stage left, by stage."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJGC_DUMP", f"{folder}/dump")
        compile_model(exported(variant) / "model.onnx", f"{folder}/plan.hjg", **SMALL)
        files = sorted(Path(folder, "dump").iterdir())
        assert [path.name[:3] for path in files] == [f"{i:02}-" for i in range(1, len(files) + 1)]
        return {path.stem[3:]: path.read_text(encoding="utf-8") for path in files}


@pytest.mark.parametrize("variant", ["mha", "qknorm"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_dump_of_a_stage_is_the_golden_one(stage: str, variant: str) -> None:
    golden = GOLDEN / f"{variant}-{stage}.txt"
    if os.environ.get("HJGC_ACCEPT_GOLDEN"):
        golden.write_text(dumps(variant)[stage], encoding="utf-8")
    assert dumps(variant)[stage].splitlines() == golden.read_text(encoding="utf-8").splitlines()


def test_every_stage_that_makes_something_dumps_it_in_order() -> None:
    assert list(dumps("mha")) == ["import", "normalise", *STAGES]


def test_there_is_no_golden_file_that_no_test_reads() -> None:
    wanted = {f"{variant}-{stage}.txt" for variant in ("mha", "qknorm") for stage in STAGES}
    assert {path.name for path in GOLDEN.iterdir()} == wanted
