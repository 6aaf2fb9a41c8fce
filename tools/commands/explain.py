"""What does `hjgc explain` take, and what does it print?"""

from __future__ import annotations

from pathlib import Path

import click

from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, example


@click.command(
    short_help="Say why parts of a plan are dynamic, what they cost, and what would change it.",
    epilog=example("hjgc explain plan.hjg --node lm_head"),
)
@click.argument("plan", type=FILE)
@click.option("--node", metavar="NAME", help="Only what became of this ONNX node or launch; a part of a name will do.")
@as_json
def command(plan: Path, node: str | None, as_json: bool) -> None:
    """Say of each dynamic segment of PLAN which launch causes it and what is behind that, from the ONNX node to the
    model input, the attribute, the library or the caller; what it costs a token; and the smallest change that would
    make it static. Then which prompt lengths run without a graph or without code built ahead, and which rewrites
    almost fired.

    With --node: the launches, verdicts, segments, kernels and costs of one node. Needs neither a GPU nor the weights,
    and runs nothing."""
    from hjgc import plan_format
    from hjgc.tools.explaining.describe import explain, explain_node
    from hjgc.tools.explaining.node_text import node_text
    from hjgc.tools.explaining.text import text

    with plan_format.load(plan) as file:
        shown = explain(file) if node is None else explain_node(file, node)
    if as_json:
        console.result_json(shown)
    else:
        console.result("\n".join(text(shown) if node is None else node_text(shown)))
