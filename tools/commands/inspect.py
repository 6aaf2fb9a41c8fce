"""How does `hjgc inspect` show a plan to a person, or to a program?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from hjgc.tools import console
from hjgc.tools.console import size, table
from hjgc.tools.parameters import FILE, as_json, check_output, example

LEDGER = {
    "weights": "packed weights on the device",
    "arena": "activations, in one piece of memory",
    "states": "KV cache, token history, logits",
    "constants": "small tensors inside the plan",
    "parameters": "the parameter block",
    "total": "allocated before anything is captured",
    "kv_per_token": "of it, KV cache for each token of context",
}


@click.command(
    short_help="Show what a plan holds: segments, launches, reasons, ledger.",
    epilog=example("hjgc inspect plan.hjg --phase decode --launches", "hjgc inspect plan.hjg --onnx-view plan.onnx"),
)
@click.argument("plan", type=FILE)
@click.option("--phase", help="Only this phase, say prefill or decode.")
@click.option("--launches", is_flag=True, help="Every launch, with its operations and bytes.")
@click.option("--tokens", type=click.IntRange(1), help="Count for this many rows.  [default: the fewest]")
@click.option(
    "--start", type=click.IntRange(0), default=0, show_default=True, help="Count after this many cached tokens."
)
@click.option(
    "--onnx-view",
    type=FILE,
    metavar="OUT.onnx",
    help="Write the plan as an ONNX model to look at, in Netron say: segments are functions.",
)
@as_json
def command(
    plan: Path,
    phase: str | None,
    launches: bool,
    tokens: int | None,
    start: int,
    onnx_view: Path | None,
    as_json: bool,
) -> None:
    """Show what PLAN holds: model, ledger, and for each phase the segments with their verdicts and reasons.

    Needs neither a GPU nor the weights, and runs nothing. --tokens and --start belong to --launches. With --onnx-view
    a file is written instead."""
    if onnx_view is not None:
        _write_view(plan, onnx_view, as_json=as_json)
        return
    from hjgc import plan_format
    from hjgc.tools.overview import chosen_phases, describe, describe_launches

    with plan_format.load(plan) as file:
        phases = chosen_phases(file, phase)
        shown = describe(file, phases)
        if launches:
            debug = file.debug()
            for one, entry in zip(phases, shown["phases"], strict=True):
                entry["launches"] = describe_launches(file.plan, one, debug, tokens=tokens, start=start)
    if as_json:
        console.result_json(shown)
    else:
        console.result("\n".join(text(shown)))


def _write_view(plan: Path, output: Path, *, as_json: bool) -> None:
    from hjgc import plan_format
    from hjgc.plan_format.files import write_atomically
    from hjgc.tools.onnx_view import onnx_view

    check_output(output, source=plan, suffix=".onnx")
    with plan_format.load(plan) as file:
        model = onnx_view(file)
    data = model.SerializeToString(deterministic=True)
    write_atomically(output, data)
    nodes = sum(len(function.node) for function in model.functions)
    shown = {"onnx_view": str(output), "bytes": len(data), "segments": len(model.functions), "launches": nodes}
    if as_json:
        console.result_json(shown)
    else:
        console.result(f"{output}: {shown['segments']} segments with {nodes} launches, {size(len(data))}; to look at")


def text(shown: dict[str, Any]) -> Iterator[str]:
    yield from _head(shown)
    yield ""
    rows = [(name, size(shown["ledger"][name]), shown["ledger"][name], why) for name, why in LEDGER.items()]
    yield table(("ledger", "size", "bytes", "what"), rows, right=("size", "bytes"))
    for phase in shown["phases"]:
        yield ""
        yield from _phase(phase, shown["ledger"]["graph"])


def _head(shown: dict[str, Any]) -> Iterator[str]:
    file, model, dtypes, producer = shown["file"], shown["model"], shown["dtypes"], shown["producer"]
    sections = ", ".join(f"{kind} {size(length)}" for kind, length in file["sections"].items())
    yield f"{file['path']}: {size(file['bytes'])} ({sections})"
    yield f"plan {shown['format']} for {', '.join(shown['targets'])}, by hjgc {producer['hjgc']}"
    vocabulary = f"{model['layers']} layers, vocabulary {model['vocab_size']}, context {model['context']}"
    islands = f"{shown['islands']} islands in ONNX Runtime" if shown["islands"] else "no island"
    facts = (
        f"a {model['architecture']}, {islands}"
        if not model["vocab_size"]
        else (f"{model['architecture']}, {vocabulary}" + (f", {islands}" if shown["islands"] else ""))
    )
    yield f"model {model['name']}: {facts}"
    yield "dtypes " + ", ".join(f"{role} {dtype}" for role, dtype in dtypes.items())
    files = ", ".join(f"{entry['name']} ({size(entry['bytes'])})" for entry in shown["weights"]["files"])
    yield f"{shown['weights']['count']} weights from {files or 'no file'}"


def _phase(phase: dict[str, Any], graphs: dict[str, int]) -> Iterator[str]:
    ranges = ", ".join(f"{s['name']} {s['low']}..{s['high']} ({s['lives']})" for s in phase["sizes"])
    ops = ", ".join(f"{name} x{times}" for name, times in phase["ops"].items())
    yield f"phase {phase['name']}: {phase['launch_count']} launches ({ops})"
    for word, ports in (("takes", phase["arguments"]), ("gives", phase["results"])):
        yield from (f"{word} {port['name']}: {port['type']} {port['shape']}" for port in ports)
    yield f"sizes: {ranges or 'none'}"
    rows = [
        (schedule["name"], *_segment(segment), size(graphs.get(f"{phase['name']}/{schedule['name']}", 0)))
        for schedule in phase["schedules"]
        for segment in schedule["segments"]
    ]
    yield table(("schedule", "verdict", "launches", "captured for, or why not", "graphs"), _said_once(rows))
    if "launches" in phase:
        yield from _launches(phase)


def _said_once(rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The schedule's name and graph bytes in its first row only: they are of the whole schedule."""
    before = None
    for name, *middle, graphs in rows:
        yield (name, *middle, graphs) if name != before else ("", *middle, "")
        before = name


def _segment(segment: dict[str, Any]) -> tuple[str, str, str]:
    numbers = segment["launches"]
    span = f"{_spans(numbers)} ({len(numbers)})"
    if segment["verdict"] == "dynamic":
        return "dynamic", span, "; ".join(_reason(reason) for reason in segment["reasons"])
    return "static", span, _captured_for(segment["key"])


def _captured_for(key: dict[str, Any]) -> str:
    sizes = ", ".join(key["sizes"])
    if not sizes:
        return "one graph for every request"
    buckets = ", ".join(str(bucket) for bucket in key["buckets"])
    return f"{sizes} up to {buckets}" if buckets else f"each {sizes} that is met"


def _spans(numbers: Sequence[int]) -> str:
    """`0..12, 14`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _reason(reason: dict[str, Any]) -> str:
    return f"{reason['code']}: {reason['sentence']} ({' <- '.join(reason['chain'])})"


def _launches(phase: dict[str, Any]) -> Iterator[str]:
    launches = phase["launches"]
    yield f"for {launches[0]['tokens']} rows after {launches[0]['start']} cached tokens:"
    rows = [
        (
            launch["number"],
            launch["name"],
            launch["op"],
            console.count(launch["flops"]),
            size(launch["bytes"]),
            ", ".join(f"{target}:{kernel['type']}" for target, kernel in launch["kernels"].items()),
            ", ".join(f"{'' if o['access'] == 'read' else '>'}{o['role']}={o['name']}" for o in launch["operands"]),
        )
        for launch in launches
    ]
    columns = ("#", "launch", "op", "flops", "bytes", "kernel", "operands (> written)")
    yield table(columns, [*rows, _total(phase)], right=("#", "flops", "bytes"))


def _total(phase: dict[str, Any]) -> tuple[str, ...]:
    """Of the default schedule: the launches of the others never run along with all of these."""
    default = next(schedule for schedule in phase["schedules"] if schedule["name"] == "default")
    run = [phase["launches"][number] for segment in default["segments"] for number in segment["launches"]]
    flops, moved = (sum(launch[name] for launch in run) for name in ("flops", "bytes"))
    return "", "default schedule", "", console.count(flops), size(moved), "", ""
