"""Does a plan read the same as when somebody last looked at it?

The golden files are accepted by hand: run with HJGC_ACCEPT=1, read the difference that `git diff` shows, commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from hjgc.plan_format.structs import Phase
from hjgc.plan_format.text import render
from tests.plan_format.device_plan import device_plan
from tests.plans import small_plan

GOLDEN = Path(__file__).parent / "golden"
PLANS = {"small": small_plan, "device": device_plan}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_reads_as_it_was_accepted(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    text = render(PLANS[name]())
    if os.environ.get("HJGC_ACCEPT"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "look at the difference; HJGC_ACCEPT=1 accepts it"


def test_equal_plans_read_equally_however_their_maps_are_ordered() -> None:
    plan = small_plan()
    turned = msgspec.structs.replace(plan, phases=tuple(_turned(phase) for phase in plan.phases))
    assert render(turned) == render(plan)


def _turned(phase: Phase) -> Phase:
    launches = tuple(
        msgspec.structs.replace(launch, attributes=dict(reversed(launch.attributes.items())))
        for launch in phase.launches
    )
    return msgspec.structs.replace(phase, launches=launches)
