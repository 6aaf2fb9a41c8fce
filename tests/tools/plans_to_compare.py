"""How do tests of `hjgc explain` and `hjgc diff` get plans: compiled from every test model, and changed by hand?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hjgc.compiler import compile_model
from hjgc.plan_format import Plan, PlanFile, save
from hjgc.plan_format.codec import load
from hjgc.plan_format.container import KINDS
from hjgc.plan_format.ledger import graph_costs
from hjgc.plan_format.reasons import Reason, ReasonCode
from hjgc.plan_format.structs import DebugMap, DynamicSegment, Phase, Schedule
from tests.compiler.exports import SMALL, changed, copy_of, with_host_function
from tests.plans import CONSTANTS
from tests.runtime.gpu_plan import write_gpu_plan
from tests.tools.command_line import write_small_plan

replace = msgspec.structs.replace
Change = Callable[[Plan], Plan]


def compiled_plan(
    folder: Path, variant: str = "gqa", *, stored: str = "float32", function: str = "", **more: Any
) -> Path:
    """The plan of a test model whose weights are `stored` so, with a call of a `function` behind its first layer if one
    is named. `more` are options."""
    model = copy_of(variant, folder, stored)
    if function:
        changed(model, with_host_function("model.layers.0/Add_1", function))
    return compile_model(model, folder / "plan.hjg", **{**SMALL, **more}).path


def sections_of(file: PlanFile) -> dict[str, bytes]:
    """All but the plan and the debug map."""
    return {kind: data for kind in KINDS[2:] if (data := file.section(kind))}


def rewritten(path: Path, change: Change, name: str = "changed.hjg") -> Path:
    """The plan with a change, its debug map and sections as they are."""
    with load(path) as file:
        save(path.with_name(name), change(file.plan), debug=file.debug(), sections=sections_of(file))
    return path.with_name(name)


def stripped(path: Path, name: str = "stripped.hjg") -> Path:
    """The plan without its debug section."""
    with load(path) as file:
        save(path.with_name(name), file.plan, sections=sections_of(file))
    return path.with_name(name)


def with_debug(path: Path, change: Callable[[DebugMap], DebugMap], name: str = "noted.hjg") -> Path:
    """The plan with a change to its debug map."""
    with load(path) as file:
        debug = file.debug()
        assert debug is not None
        save(path.with_name(name), file.plan, debug=change(debug), sections=sections_of(file))
    return path.with_name(name)


def write(plan: Plan, path: Path) -> Path:
    save(path, plan, sections={"constants": CONSTANTS})
    return path


def with_reason(plan: Plan, code: ReasonCode, *chain: str) -> Plan:
    """All of decoding in one dynamic segment; the reason is its first launch's."""

    def phase(one: Phase) -> Phase:
        launches = tuple(n for segment in one.schedules[0].segments for n in segment.launches)
        reason = Reason(launches[0], code, (one.launches[launches[0]].name, *chain))
        return replace(one, schedules=(Schedule("default", (DynamicSegment(launches, (reason,)),)),))

    phases = tuple(phase(one) if one.name == "decode" else one for one in plan.phases)
    return replace(plan, phases=phases, ledger=replace(plan.ledger, graph=graph_costs(phases)))


PLAN_KINDS = ("by hand", "function", "gpu", "compiled", "stripped")


def plan_of_kind(kind: str, folder: Path) -> Path:
    """A plan as tests meet them: without and with a function of the caller's, for a GPU that is not there, compiled
    with such a function, and without a debug section."""
    match kind:
        case "gpu":
            return write_gpu_plan(folder)
        case "compiled":
            return compiled_plan(folder, function="steer")
        case "stripped":
            return stripped(compiled_plan(folder))
        case _:
            return write_small_plan(folder, function="steer" if kind == "function" else "")
