"""Which names of files may a plan use?"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hjgc.plan_format import PlanError
from hjgc.plan_format.checker import Checker
from hjgc.plan_format.verify import verify
from hjgc.plan_format.verify_tables import check_file_name
from tests.plans import CONSTANTS, small_plan

INSIDE = ["weights.bin", "model-00001-of-00002.safetensors", "sub/folder/w.bin", "ä ö.bin", "..w", "con1", "~x"]
OUTSIDE = [
    *("", ".", "..", "/", "/etc/passwd", "//host/share", "../w", "a/../../w", "a/..", "./w", "a//b", "a/"),
    *("C:w", "C:\\w", "\\w", "a\\b", "..\\w", "file:w", "w\0", "w\n", "\x1b[2J", "\u202ew", "a*", "a?", '"', "<", "|"),
    *("con", "NUL", "nul.txt", "sub/aux", "COM1", "lpt9.bin", "w.", "w ", " w", "a /b", "x" * 513),
]


@pytest.mark.parametrize("name", INSIDE)
def test_a_plain_relative_name_is_fine(name: str) -> None:
    check_file_name(name, "here", Checker(Path("p.hjg")))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_or_to_a_device_on_any_system_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="here: expected a relative name inside the weights root"):
        check_file_name(name, "here", Checker(Path("p.hjg")))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_plan_names_such_a_file(name: str) -> None:
    plan = small_plan()
    files = (msgspec.structs.replace(plan.files[0], name=name),)
    with pytest.raises(PlanError, match=r"\$\.files\[0\]\.name"):
        verify(msgspec.structs.replace(plan, files=files), {"constants": len(CONSTANTS)}, Path("p.hjg"))
