"""Does everything that the exporters write either become a plan that computes the same, or end in a reason? And does
docs/exporters.md say so?

`make test-exporters` makes the files first; with HJGC_ACCEPT=1 it writes the page anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.exporters.examining import MODELS, all_found, examine, files, folders
from tests.exporters.page import render

PAGE = Path(__file__).parents[2] / "docs" / "exporters.md"
FILES = [model for folder in folders() for model in files(folder)]

pytestmark = [
    pytest.mark.exporters,
    pytest.mark.skipif(not FILES, reason=f"expected exported models in {MODELS}: run `make test-exporters`"),
]


@pytest.mark.parametrize("model", FILES, ids=lambda model: f"{model.parent.name}-{model.stem}")
def test_a_file_is_refused_for_a_reason_or_its_plan_computes_the_same(model: Path) -> None:
    found = examine(model)
    assert found.refused or found.why_not or (found.error is not None and found.error <= found.tolerance)


def test_the_page_says_what_was_found() -> None:
    text = render(all_found())
    if os.environ.get("HJGC_ACCEPT") == "1":
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text
