"""What does `hjgc diff` take, what does it print, and with which code does it end?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, example

SAME, DIFFERENT = 0, 1


@click.command(
    short_help="Say what differs between two plans, and the cause; a gate for CI.",
    epilog=example("hjgc diff before.hjg after.hjg --fail-on segments,ledger+5%,time+3%"),
)
@click.argument("before", metavar="A", type=FILE)
@click.argument("after", metavar="B", type=FILE)
@click.option(
    "--fail-on", metavar="RULES", help="End with 1 only if one of these rules is broken, say segments,time+3%."
)
@as_json
def command(before: Path, after: Path, fail_on: str | None, as_json: bool) -> int:
    """Say what differs between the plans A and B, the cause first: an option, an element type, the exporter, the model,
    a size range, or the version of hjgc.

    Launches are aligned by the ONNX nodes that they stand for. Times are predicted from bytes and operations, for chips
    that are known. A rule is an area of the report, which then may not change, or ledger+N% or time+N%, which may not
    grow by more. Needs neither a GPU nor the weights, and runs nothing.

    Exit code 0: the same (with --fail-on: no rule is broken); 1: different (a rule is broken); 2: could not compare."""
    from hjgc import plan_format
    from hjgc.tools.differing.describe import differences
    from hjgc.tools.differing.rules import parse
    from hjgc.tools.differing.sides import side
    from hjgc.tools.differing.text import text

    rules = () if fail_on is None else parse(fail_on)
    with plan_format.load(before) as one, plan_format.load(after) as other:
        shown = differences(side(one), side(other), rules)
    if as_json:
        console.result_json(shown)
    else:
        console.result("\n".join(text(shown)))
    return _code(shown, gated=fail_on is not None)


def _code(shown: dict[str, Any], *, gated: bool) -> int:
    failed = any(rule["broken"] for rule in shown["rules"]) if gated else not shown["same"]
    return DIFFERENT if failed else SAME
