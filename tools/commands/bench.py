"""How fast is a plan on this machine, and how fast are others beside it?"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hjgc.plan_format.errors import InputError
from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, check_output, example

if TYPE_CHECKING:
    from hjgc.plan_format.structs import Plan

PEERS = ("eager", "ort")
THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")
"""What decides how the libraries' threads wait for each other; --threads sets their numbers over these."""


def lengths(words: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between them, each once."""
    try:
        numbers = tuple(dict.fromkeys(int(word) for word in words.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"expected whole numbers, say 10,50,100, found {words!r}")
    return numbers


def peer_names(words: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word for word in words.split(",") if word))
    if unknown := [name for name in names if name not in PEERS]:
        raise click.BadParameter(f"expected {' or '.join(PEERS)} with commas between them, found {unknown[0]!r}")
    return names


@click.command(
    short_help="Measure time to first token and time per token.",
    epilog=example("hjgc bench plan.hjg --lengths 10,100 --hf models/demo --onnx demo.onnx --repeat 10 -o bench.json"),
)
@click.argument("plan", type=FILE)
@click.option(
    "--lengths", type=lengths, metavar="N,N,...", default="10,50,100,200", show_default=True, help="Prompt lengths."
)
@click.option(
    "--decode", type=click.IntRange(0), default=64, show_default=True, help="Further tokens after each prompt."
)
@click.option(
    "--repeat", type=click.IntRange(1), default=5, show_default=True, help="Warm answers at each prompt length."
)
@click.option(
    "--mode",
    type=click.Choice(["plain", "graph", "both"]),
    default="both",
    show_default=True,
    help="Launch one by one, or replay graphs (captured and checked before the measurement).",
)
@click.option("--threads", type=click.IntRange(1), help="Of every system, on the CPU.  [default: the cores, at most 2]")
@click.option("--peers", type=peer_names, metavar="eager,ort", help="[default: those whose model is given]")
@click.option("--hf", type=FILE, metavar="DIR", help="The checkpoint, for the peer eager (transformers).")
@click.option("--onnx", type=FILE, metavar="MODEL.onnx", help="The model, for the peer ort (ONNX Runtime).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other prompts.")
@click.option("--weights", type=FILE, help="The folder of the plan's weights.  [default: the plan's folder]")
@click.option("--device", help="Where the plan runs: cpu or cuda.  [default: what the plan is for]")
@click.option("-o", "--output", type=FILE, help="Write the result to this file too, as JSON.")
@as_json
def command(
    plan: Path,
    lengths: tuple[int, ...],
    decode: int,
    repeat: int,
    mode: str,
    threads: int | None,
    peers: tuple[str, ...] | None,
    hf: Path | None,
    onnx: Path | None,
    seed: int,
    weights: Path | None,
    device: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure how long PLAN takes to the first token and for each further one.

    Every system runs in a process of its own with the same threads, gets the same token ids, and takes turns with the
    others; their greedy tokens are compared. docs/benchmarks.md says what is measured and how."""
    if output is not None:
        check_output(output, source=plan, suffix=".json")
    from hjgc import plan_format
    from hjgc.tools.benchmarking import Settings, bench

    with plan_format.load(plan) as file:
        loaded = file.plan
    threads = threads or min(2, os.cpu_count() or 1)
    specs = _specs(plan, mode, weights, device) | _peer_specs(loaded, peers, hf, onnx, threads)
    _check_lengths(loaded, lengths, decode)
    settings = Settings(lengths, decode, repeat, threads, seed, loaded.model.vocab_size)
    with console.stages() as tell:
        measured = bench(specs, settings, tell)
    shown = {"plan": _plan(plan, loaded), "machine": machine(), **measured}
    if output is not None:
        from hjgc.plan_format.files import write_atomically

        write_atomically(output, (json.dumps(shown, indent=2) + "\n").encode())
    if as_json:
        console.result_json(shown)
    else:
        console.result("\n".join(text(shown)))


def _check_lengths(plan: Plan, lengths: tuple[int, ...], decode: int) -> None:
    for length in lengths:
        if length + decode > plan.model.context:
            problem = f"expected prompt and answer within the plan's context of {plan.model.context} tokens"
            raise InputError(
                "--lengths",
                f"{problem}, found {length} + {decode}",
                next_step="use shorter ones, or a smaller --decode",
            )


def _specs(path: Path, mode: str, weights: Path | None, device: str | None) -> dict[str, dict[str, Any]]:
    modes = ("plain", "graph") if mode == "both" else (mode,)
    common = {"kind": "plan", "plan": str(path), "weights": None if weights is None else str(weights), "device": device}
    return {f"hjgc {name}": common | {"mode": name} for name in modes}


def _peer_specs(
    plan: Plan, peers: tuple[str, ...] | None, hf: Path | None, onnx: Path | None, threads: int
) -> dict[str, dict[str, Any]]:
    """Raises InputError for a peer without its model."""
    given = {"eager": hf, "ort": onnx}
    names = tuple(name for name in PEERS if given[name] is not None) if peers is None else peers
    specs: dict[str, dict[str, Any]] = {}
    for name in names:
        path = given[name]
        option = "--hf DIR" if name == "eager" else "--onnx MODEL.onnx"
        if path is None:
            raise InputError("--peers", f"expected a model for {name}, found none", next_step=f"add {option}")
        if not path.exists():
            raise InputError(path, "expected the model of a peer, found nothing there", field=option.split()[0])
        specs[name] = {"kind": name, "threads": threads}
        specs[name] |= {"folder": str(path), "dtype": plan.dtypes.compute} if name == "eager" else {"model": str(path)}
    return specs


def _plan(path: Path, plan: Plan) -> dict[str, Any]:
    return {
        "path": str(path),
        "model": plan.model.name,
        "targets": list(plan.targets),
        "compute_dtype": plan.dtypes.compute,
        "weight_bytes": plan.ledger.weights,
        "context": plan.model.context,
        "prompt": plan.producer.options.get("prompt"),
    }


def machine() -> dict[str, Any]:
    from hjgc.tools.machine import memory, processor

    cpu = processor()
    return {
        "processor": cpu.name,
        "architecture": cpu.architecture,
        "cores": cpu.cores,
        "usable_cores": cpu.usable,
        "flags": list(cpu.flags),
        "memory_bytes": memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(THREADING)},
    }


def text(shown: dict[str, Any]) -> Iterator[str]:
    plan, cpu, settings = shown["plan"], shown["machine"], shown["settings"]
    size = console.size(plan["weight_bytes"])
    yield f"{plan['path']}: {plan['model']}, {plan['compute_dtype']}, {size} of weights, context {plan['context']}"
    yield f"{cpu['processor']}, {cpu['usable_cores']} of {cpu['cores']} cores usable, {settings['threads']} threads"
    yield f"{cpu['system']}, Python {cpu['python']}, {_versions(shown)}, {shown['date']}"
    yield ""
    yield "milliseconds; TTFT: from the prompt's ids to the first token's id, token: each further one"
    yield _latencies(shown)
    yield ""
    yield _startup(shown)
    yield from _remarks(shown)


def _versions(shown: dict[str, Any]) -> str:
    found: dict[str, str] = {}
    for system in shown["systems"]:
        found |= system["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _latencies(shown: dict[str, Any]) -> str:
    points = ("p50", "p90", "p99", "max")
    columns = ("prompt", "system", *(f"TTFT {point}" for point in points), "TTFT cold")
    columns += (*(f"token {point}" for point in points), "replayed", "tokens")
    rows = [
        (
            row["length"],
            row["system"],
            *_points(row["ttft_ms"]),
            _number(row["cold_ttft_ms"]),
            *_points(row["token_ms"]),
            f"{row['replayed']}/{row['ran']}" if row["ran"] else "",
            "the same" if row["tokens_differ_at"] is None else f"differ at {row['tokens_differ_at']}",
        )
        for row in shown["rows"]
    ]
    return console.table(columns, rows, right=[name for name in columns if name not in ("system", "tokens")])


def _points(summary: dict[str, float] | None) -> Iterator[str]:
    for name in ("p50", "p90", "p99", "max"):
        yield "" if summary is None else _number(summary[name])


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.2f}"


def _startup(shown: dict[str, Any]) -> str:
    parts = ("import", "plan", "weights", "other", "first_request", "to_first_token")
    titles = ("start-up, ms", "import", "plan", "weights", "other", "first request", "all, to first token")
    rows = [
        (
            system["name"],
            *(_number(system["startup_ms"][part]) if part in system["startup_ms"] else "" for part in parts),
        )
        for system in shown["systems"]
    ]
    return console.table(titles, rows, right=titles[1:])


def _remarks(shown: dict[str, Any]) -> Iterator[str]:
    for system in shown["systems"]:
        segments = system["details"].get("segments", ())
        if segments:
            states = ", ".join(f"{n} {state}" for state, n in Counter(entry["state"] for entry in segments).items())
            yield f"{system['name']}: segments that ran: {states}; graphs hold {_graph_bytes(system)}"
        if not system["graphs_settled"]:
            yield f"note: {system['name']}: not every graph was ready when the measurement began"
        for entry in segments:
            if entry["why"]:
                yield f"note: {system['name']}: {entry['phase']} {entry['key']}: {entry['state']}: {entry['why']}"
    load = shown["load_average"]["before"]
    if load is not None and load[0] > 1:
        yield f"note: {load[0]} threads were running on this machine before the measurement began"


def _graph_bytes(system: dict[str, Any]) -> str:
    return console.size(system["details"]["graph_bytes"])
