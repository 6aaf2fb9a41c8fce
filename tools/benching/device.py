"""What is one whole measurement on a GPU?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from hjgc.plan_format.errors import HjgcError
from hjgc.plan_format.structs import Plan
from hjgc.tools.benching import fresh, limits
from hjgc.tools.benching.alone import measure_all
from hjgc.tools.benching.device_result import result
from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.systems import Contender
from hjgc.tools.benchmarking import SCHEMA, load_average

T = TypeVar("T")
Tell = Callable[[str], None]


def bench_device(plan: Plan, contenders: Mapping[str, Contender], settings: Settings, tell: Tell) -> dict[str, Any]:
    """The device's limits first, then each system alone, then fresh processes of our own. Raises HjgcError."""
    began, load = datetime.now(UTC), load_average()
    tell("the device's own limits")
    best = limits.measured()
    found = measure_all(contenders, settings, tell)
    name, spec = _freshly_started(contenders)
    problems: list[str] = []
    cold = _unless_it_fails(lambda: fresh.cold(name, spec, settings, tell), problems, tell)
    capturing = _unless_it_fails(lambda: fresh.capturing(name, spec, plan, settings, tell), problems, tell)
    return {
        "schema": SCHEMA,
        "date": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "load_average": {"before": load, "after": load_average()},
        "settings": settings.shown_on_a_device(),
        **result(plan, best, settings, found),
        "cold": cold or [],
        "capturing": capturing,
        "problems": problems,
    }


def _unless_it_fails(work: Callable[[], T], problems: list[str], tell: Tell) -> T | None:
    """What was measured before is kept whatever fails here."""
    try:
        return work()
    except HjgcError as error:
        tell(f"note: {error}")
        problems.append(str(error))
        return None


def _freshly_started(contenders: Mapping[str, Contender]) -> tuple[str, dict[str, Any]]:
    """Ours as a user starts it, by graphs, whichever modes are measured."""
    spec = next(iter(contenders.values())).spec
    return "hjgc graph", {**spec, "mode": "graph"}
