"""Does a plan that an earlier hjgc wrote still read, and mean the same?

The files in `golden` were written when their format was new and are never written again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hjgc.plan_format import encode, load

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["small-1.0.hjg", "device-1.0.hjg"])
def test_a_plan_of_format_1_0_reads_and_means_the_same(name: str) -> None:
    file = load(GOLDEN / name)
    assert file.plan.format == "1.0"
    assert encode(file.plan) == file.section("plan")
