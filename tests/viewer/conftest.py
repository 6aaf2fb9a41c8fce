"""What do the tests share that need a browser?"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from hjgc.plan_format import DebugMap, save
from hjgc.plan_format.structs import LaunchDebug, PhaseDebug
from tests.plans import CONSTANTS, small_plan
from tests.tools.command_line import PROGRAM, CommandLine, in_its_own_process
from tests.viewer.browser import Browser, browser

BLOCKS = 16_662
"""That many make a plan of 100,002 launches, whose section `plan` fills 97 % of what the format allows it."""
SECONDS = 60
"""Five times what `hjgc view` of such a plan takes here, half of what it took while a part of it was quadratic."""


@pytest.fixture(scope="session")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `hjgc view` writes of a plan of BLOCKS blocks."""
    path, plan = tmp_path_factory.mktemp("long") / "plan.hjg", small_plan(blocks=BLOCKS)
    nodes = [[LaunchDebug((f"model.{launch.name}/MatMul",)) for launch in phase.launches] for phase in plan.phases]
    debug = DebugMap(tuple(PhaseDebug(p.name, tuple(found)) for p, found in zip(plan.phases, nodes, strict=True)))
    save(path, plan, debug=debug, sections={"constants": CONSTANTS})
    page = path.with_suffix(".html")
    program = in_its_own_process(*PROGRAM, "view", str(path), "-o", str(page))
    try:
        _, said = program.communicate(timeout=SECONDS)
    finally:
        program.kill()
    assert (program.returncode, said) == (0, "")
    return page


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
