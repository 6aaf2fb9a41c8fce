"""What do the tests share that need a browser?"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.tools.command_line import CommandLine
from tests.viewer.browser import Browser, browser


@pytest.fixture(scope="session")
def chromium() -> Generator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def window(chromium: Browser) -> Generator[Browser]:
    """1280 by 800, and nothing in the console at the end."""
    chromium.size(1280, 800)
    chromium.said()
    yield chromium
    assert chromium.said() == []


@pytest.fixture
def hjgc(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)
