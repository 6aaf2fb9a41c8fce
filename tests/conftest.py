"""Which tests need a GPU, or a browser? Those of a folder each, marked here so that none can be forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDERS = {"gpu": pytest.mark.gpu, "viewer": pytest.mark.browser}


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder, mark in FOLDERS.items():
            if item.path.is_relative_to(Path(__file__).parent / folder):
                item.add_marker(mark)
