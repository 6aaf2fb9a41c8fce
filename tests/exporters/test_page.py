"""Does the page say of each file what was found, and why where something is missing?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.exporters.examining import Case, Found
from tests.exporters.page import EXPORTERS, render

CASE = Case("dynamo4", "llama2", "fp16", {"torch": "2.13.0", "transformers": "4.57.6"}, "")
FULL = Found(per_layer=5, static=1.0, error=4e-6, tolerance=1e-4)

CELLS = {
    "full": (CASE, FULL, "| fp16 | 5 · 100% · ≤ 1e-4 |  |"),
    "far": (CASE, replace(FULL, error=0.3), "| fp16 | 5 · 100% · > 0.1 |  |"),
    "partly": (CASE, replace(FULL, left=("erf",), static=0.5), "| fp16 | partly (erf) · 5 · 50% · ≤ 1e-4 |  |"),
    "refused": (CASE, Found(refused="node If: found If"), "| fp16 | refused [1] |  |"),
    "not_compared": (CASE, replace(FULL, error=None, why_not="its sizes"), "| fp16 | 5 · 100% [1] |  |"),
    "not_exported": (replace(CASE, error="no"), Found(), "| fp16 | not exported [1] |  |"),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS)
def test_a_cell_says_what_was_found(case: str) -> None:
    about, found, line = CELLS[case]
    assert line in render([(about, "" if about.error else "model", found)])


def test_a_reason_is_written_once_below_its_table() -> None:
    refused = Found(refused="node If: found If")
    text = render([(CASE, "model", refused), (replace(CASE, architecture="qwen3"), "model", refused)])
    assert text.count("node If: found If") == 1
    assert "| fp16 | refused [1] |  |  |  | refused [1] |" in text


def test_the_summary_counts_files_that_are_recognised_fully_among_those_written() -> None:
    failed = (replace(CASE, error="no"), "", Found())
    text = render([(CASE, "model", FULL), (CASE, "other", Found(refused="why")), failed])
    assert "dynamo=True)`, torch 2.13.0, transformers 4.57.6 | 1 of 2 |" in text


def test_every_exporter_has_a_table() -> None:
    entries = [(replace(CASE, exporter=exporter), "model", FULL) for exporter in EXPORTERS]
    assert render(entries).count("| fp16 | 5 · 100% · ≤ 1e-4 |") == len(EXPORTERS)
