"""What is one whole measurement on a GPU?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from hjgc.plan_format.errors import HjgcError
from hjgc.plan_format.structs import Plan
from hjgc.tools.benching import fresh, limits
from hjgc.tools.benching.alone import Found, measure_all
from hjgc.tools.benching.device_result import result
from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.systems import Contender
from hjgc.tools.benchmarking import SCHEMA, load_average

INTERRUPTED = 130
"""128 + SIGINT, as a shell counts."""

T = TypeVar("T")
Tell = Callable[[str], None]


def bench_device(plan: Plan, contenders: Mapping[str, Contender], settings: Settings, tell: Tell) -> dict[str, Any]:
    """The device's limits first, then each system alone, then fresh processes of our own. An interruption ends the
    measurement, not the result: `interrupted` is the exit code that it asks for. Raises HjgcError."""
    began, load = datetime.now(UTC), load_average()
    tell("the device's own limits")
    best = limits.measured()
    found: dict[str, Found] = {}
    own: dict[str, Any] = {"cold": [], "capturing": None, "launches": None, "problems": [], "interrupted": None}
    try:
        measure_all(contenders, settings, tell, found)
        _measure_fresh(plan, contenders, settings, tell, own)
    except (KeyboardInterrupt, SystemExit) as stop:
        if not any(entry.prompts for entry in found.values()):
            raise
        tell("note: interrupted; what was measured before is kept")
        own["interrupted"] = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else stop.code
    return {
        "schema": SCHEMA,
        "date": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "load_average": {"before": load, "after": load_average()},
        "settings": settings.shown_on_a_device(),
        **result(plan, best, settings, found),
        **own,
    }


def _measure_fresh(
    plan: Plan, contenders: Mapping[str, Contender], settings: Settings, tell: Tell, own: dict[str, Any]
) -> None:
    """Ours as a user starts it, by graphs, whichever modes are measured."""
    name, spec = "hjgc graph", {**next(iter(contenders.values())).spec, "mode": "graph"}
    problems = own["problems"]
    own["cold"] = _unless_it_fails(lambda: fresh.cold(name, spec, settings, tell), problems, tell) or []
    own["capturing"] = _unless_it_fails(lambda: fresh.capturing(name, spec, plan, settings, tell), problems, tell)
    if settings.launches:
        plain = {**spec, "mode": "plain"}
        timed = _unless_it_fails(lambda: fresh.launches("hjgc plain", plain, plan, settings, tell), problems, tell)
        own["launches"] = timed


def _unless_it_fails(work: Callable[[], T], problems: list[str], tell: Tell) -> T | None:
    """What was measured before is kept whatever fails here."""
    try:
        return work()
    except HjgcError as error:
        tell(f"note: {error}")
        problems.append(str(error))
        return None
