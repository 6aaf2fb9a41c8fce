"""What does `hjgc view` take, and what does it write?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hjgc.tools import console
from hjgc.tools.console import size
from hjgc.tools.parameters import FILE, as_json, check_output, example

if TYPE_CHECKING:
    from hjgc.plan_format import PlanFile


@click.command(
    short_help="Write a page that shows a plan, or two side by side, in a browser.",
    epilog=example("hjgc view plan.hjg -o plan.html"),
)
@click.argument("plan", type=FILE)
@click.argument("other", type=FILE, required=False)
@click.option("-o", "--output", type=FILE, help="The page.  [default: the plan's name with .html, in this folder]")
@click.option("--report", type=FILE, metavar="R.json", help="What PLAN did when it was served: its `report()` as JSON.")
@click.option("--bench", type=FILE, metavar="B.json", help="A decoder: what `hjgc bench -o` measured.")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@as_json
def command(
    plan: Path,
    other: Path | None,
    output: Path | None,
    report: Path | None,
    bench: Path | None,
    opens: bool,
    as_json: bool,
) -> None:
    """Write a page that shows PLAN: memory, segments and launches with their kernels and predicted times, why what is
    dynamic is so, the arena, the kernel templates. With OTHER both plans are there, and what differs between them.

    The page is one file: it needs no server and no network, and opens from a folder or an attachment. Nothing in a plan
    runs. Needs neither a GPU nor the weights."""
    from hjgc import plan_format
    from hjgc.plan_format.files import write_atomically
    from hjgc.tools.viewing.page import page

    output = Path(plan.name).with_suffix(".html") if output is None else output
    check_output(output, source=plan, suffix=".html")
    with plan_format.load(plan) as one:
        if other is None:
            data = _data([one], report, bench)
        else:
            with plan_format.load(other) as two:
                data = _data([one, two], report, bench)
    written = page(data, f"{plan.name}: {data['plans'][0]['model']['name']}").encode("utf-8", "replace")
    write_atomically(output, written)
    if as_json:
        console.result_json({"page": str(output), "bytes": len(written), "plans": len(data["plans"])})
    else:
        console.result(f"{output}: {size(len(written))}, to open in a browser")
    if opens:
        click.launch(str(output))


def _data(plans: list[PlanFile], report: Path | None, bench: Path | None) -> dict[str, Any]:
    from hjgc.tools.differing.describe import differences
    from hjgc.tools.differing.sides import side
    from hjgc.tools.viewing import measured
    from hjgc.tools.viewing.data import page_data

    return {
        "plans": [page_data(file) for file in plans],
        "diff": differences(side(plans[0]), side(plans[1]), ()) if len(plans) > 1 else None,
        "report": None if report is None else measured.report(plans[0].plan, report),
        "measured": [] if bench is None else measured.measured(plans[0].plan, bench),
        "timed": [] if bench is None else measured.launch_times(plans[0].plan, bench),
    }
