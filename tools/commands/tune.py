"""How are a plan's kernels fitted to the card that will serve it?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hjgc.plan_format.errors import PlanError
from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, check_output, example

if TYPE_CHECKING:
    from hjgc.plan_format import PlanFile
    from hjgc.tools.tuning import Change, Tuned


@click.command(
    short_help="Search for faster kernels of a decoder on this machine's GPU.",
    epilog=example("hjgc tune plan.hjg -o tuned.hjg --seconds 120"),
)
@click.argument("plan", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The plan to write.")
@click.option("--seconds", type=click.FloatRange(1), default=120, show_default=True, help="About how long to search.")
@click.option("--phase", type=click.Choice(["decode", "prefill"]), help="Only this phase.  [default: both]")
@click.option("--weights", type=FILE, help="The folder of the plan's weights.  [default: the plan's folder]")
@as_json
def command(plan: Path, output: Path, seconds: float, phase: str | None, weights: Path | None, as_json: bool) -> None:
    """Measure other axes for the kernels of PLAN, a decoder's, each in the whole step, and write a plan with those that
    are faster.

    Needs the GPU that the plan is for, the plan's weights and the extra aot. Launches, memory and weights stay as they
    are, and nothing is exported again. A search that is cut short keeps what it found. Bits may differ from the old
    plan's: other tiles add up in another order."""
    check_output(output, source=plan, suffix=".hjg")
    from hjgc import plan_format
    from hjgc.compiler.retune import check_templates, gathered

    with console.stages() as tell, plan_format.load(plan) as file:
        _check_decoder(file)
        check_templates(file.plan, plan)
        target, tuned = _search(file, weights or plan.parent, seconds, phase, tell)
        made = gathered(file, tuned.plan, tuned.added, {"tuned": target})
        kept = {kind: data for kind in ("constants", "islands") if (data := file.section(kind))}
        plan_format.save(output, made.plan, debug=file.debug(), sections={**kept, **made.sections})
    if as_json:
        console.result_json(as_data(output, tuned))
    else:
        console.result("\n".join(text(output, tuned)))


def _check_decoder(file: PlanFile) -> None:
    """Raises PlanError for a plan that is a function."""
    if file.plan.is_function:
        problem = "expected a decoder's plan, whose steps can be measured, found one that is a function"
        raise PlanError(file.path, problem, field="$.phases", next_step="its kernels are served as they were compiled")


def _search(file: PlanFile, root: Path, seconds: float, phase: str | None, tell: Any) -> tuple[str, Tuned]:
    """The card's target, and what was found for it. Raises PlanError, RunError."""
    from hjgc.tools.tuning import CardStopwatch, Tuner, places

    driver = importlib.import_module("hjgc.runtime.backends.cuda_driver").Driver()
    try:
        if driver.target not in file.plan.targets:
            problem = f"expected a plan for {driver.target}, this machine's GPU, found {', '.join(file.plan.targets)}"
            raise PlanError(file.path, problem, field="$.targets", next_step=f"compile with --target {driver.target}")
    except BaseException:
        driver.close()
        raise
    tell("load")
    backend = importlib.import_module("hjgc.runtime.backends.cuda").CudaBackend(file, root, driver=driver)
    try:
        wanted = [place for place in places(file.plan, backend.name) if phase in (None, place.phase)]
        tuner = Tuner(file.plan, backend.name, CardStopwatch(backend, file.plan), tell)
        return backend.name, tuner.run(wanted, seconds)
    finally:
        backend.close()


def text(output: Path, tuned: Tuned) -> list[str]:
    lines = [_line(change) for change in tuned.changes] or ["nothing was faster"]
    end = "" if tuned.finished else "; time was up: more may be found with more --seconds"
    return [*lines, f"{output}: {len(tuned.changes)} changes of {tuned.measured} measured{end}"]


def _line(change: Change) -> str:
    axes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in change.axes.items())
    return f"{change.place}: {change.template}: {axes}: {change.before:.3f} -> {change.after:.3f} ms"


def as_data(output: Path, tuned: Tuned) -> dict[str, Any]:
    changes = [
        {
            "phase": change.place.phase,
            "rows": change.place.rows,
            "template": change.template,
            "axes": {name: list(values) for name, values in change.axes.items()},
            "before_ms": change.before,
            "after_ms": change.after,
        }
        for change in tuned.changes
    ]
    return {"path": str(output), "changes": changes, "measured": tuned.measured, "finished": tuned.finished}
