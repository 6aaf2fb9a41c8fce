"""Is a plan whole, are its weights the right ones, and does it compute what the ONNX model computes?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hjgc.plan_format.errors import InputError
from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, example, refuse_options, size_value

if TYPE_CHECKING:
    from hjgc.plan_format import PlanFile
    from hjgc.runtime.opening import Opened
    from hjgc.tools.locating import Difference
    from hjgc.tools.verifying import Run
    from hjgc.tools.weight_files import WeightCheck

DIFFERENT = 1
OF_DECODERS = ("prompt_lengths", "steps")
OF_FUNCTIONS = ("feed", "sizes", "device")


def lengths(words: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between them."""
    try:
        numbers = tuple(int(word) for word in words.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"expected whole numbers, say 1,7,16, found {words!r}")
    return numbers


@click.command(
    short_help="Check a plan, its weights, and what it computes.",
    epilog=example(
        "hjgc verify plan.hjg --against model.onnx --prompt-lengths 1,7,16 --steps 8",
        "hjgc verify function.hjg --against model.onnx --size batch=2",
        "hjgc verify function.hjg --against model.onnx --feed inputs.npz",
    ),
)
@click.argument("plan", type=FILE)
@click.option("--against", type=FILE, metavar="MODEL.onnx", help="Compare with ONNX Runtime's CPU provider.")
@click.option(
    "--prompt-lengths", type=lengths, metavar="N,N,...", default="1,7,16", show_default=True, help="Random prompts."
)
@click.option("--steps", type=click.IntRange(0), default=8, show_default=True, help="Decode steps after each prompt.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    help="Largest difference of a logit; of a function's output, as a part of its largest magnitude.  [default: by "
    "dtype: 1e-4 float32, 2e-2 float16; bfloat16 2e-1, of a function 1e-1]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other prompts, or other inputs.")
@click.option("--feed", type=FILE, metavar="X.npz", help="A function's inputs, arrays by name.  [default: made up]")
@click.option(
    "--size",
    "sizes",
    type=size_value,
    multiple=True,
    metavar="NAME=VALUE",
    help="A function: made-up inputs of this size; repeatable.  [default: low, middle, high]",
)
@click.option("--device", help="A function: where it runs, cpu or cuda.  [default: what the plan is for]")
@click.option("--weights", "full", is_flag=True, help="Read all of every weight file for its sha256.")
@click.option("--weights-root", type=FILE, help="The folder of the weights.  [default: the plan's folder]")
@as_json
def command(
    plan: Path,
    against: Path | None,
    prompt_lengths: tuple[int, ...],
    steps: int,
    tolerance: float | None,
    seed: int,
    feed: Path | None,
    sizes: tuple[tuple[str, int], ...],
    device: str | None,
    full: bool,
    weights_root: Path | None,
    as_json: bool,
) -> int:
    """Check that PLAN is whole, is legal and has the weights that it was compiled against.

    With --against, ONNX Runtime judges: logits and greedy tokens of the prompt and of each decode step. Where they
    differ, the first tensor that does is named, with the launch that wrote it and its ONNX node. Of a plan that is a
    function, every output of calls with made-up inputs, or with those of --feed, is compared.

    Exit code 0: equal. 1: different. 2: could not be checked."""
    from hjgc.runtime.opening import open_plan
    from hjgc.tools.weight_files import check_weight_files

    if tolerance is not None and not math.isfinite(tolerance):
        raise InputError("--tolerance", f"expected a finite number, found {tolerance}")
    with console.stages() as tell:
        tell("read the plan")
        opened = open_plan(plan, weights_root)
        with opened.file as file:
            is_function = file.plan.is_function
            _check_options(is_function=is_function, against=against, feed=feed, sizes=sizes)
            _read_everything(file)
            tell("check the weights")
            weights = check_weight_files(file, opened.root, full=full)
            shown = describe(file, weights)
            if against is not None and shown["equal"] and is_function:
                shown |= _call(opened, tell, against, feed, dict(sizes), tolerance, seed, device)
            elif against is not None and shown["equal"]:
                shown |= _compare(file, opened.root, against, prompt_lengths, steps, tolerance, seed, tell)
    if as_json:
        console.result_json(shown)
    else:
        console.result("\n".join(text(shown)))
    return 0 if shown["equal"] else DIFFERENT


def _check_options(*, is_function: bool, against: Path | None, feed: Path | None, sizes: Sequence[object]) -> None:
    """Raises InputError for what makes no sense for this plan, or together."""
    if is_function:
        refuse_options(OF_DECODERS, "expected a decoder with this option, found a plan that is a function")
    else:
        refuse_options(OF_FUNCTIONS, "expected a plan that is a function with this option, found a decoder")
    if against is None:
        refuse_options(OF_FUNCTIONS, "expected --against MODEL.onnx with it, found none")
    if feed is not None and sizes:
        raise InputError("--size", "expected made-up inputs, found --feed too", next_step="leave one of them out")


def _call(opened: Opened, tell: Any, *asked: Any) -> dict[str, Any]:
    from hjgc.tools.functions.verifying import Asked, verify_function

    return verify_function(opened, Asked(*asked), tell)


def _read_everything(file: PlanFile) -> None:
    """Every section's digest, and the debug map against the plan."""
    for kind in file.section_lengths():
        file.section(kind)
    file.debug()


def _compare(
    file: PlanFile,
    root: Path,
    against: Path,
    prompt_lengths: tuple[int, ...],
    steps: int,
    tolerance: float | None,
    seed: int,
    tell: Any,
) -> dict[str, Any]:
    from hjgc.tools.judge import Judge
    from hjgc.tools.verifying import TOLERANCES, check_comparable, compare, open_backend

    check_comparable(file)
    dtype = file.plan.dtypes.compute
    limit = TOLERANCES[dtype] if tolerance is None else tolerance
    shown: dict[str, Any] = {"against": str(against), "tolerance": limit, "seed": seed, "compute_dtype": dtype}
    tell("load the ONNX model")
    judge = Judge(against)
    tell("load the weights")
    backend = open_backend(file, root)
    try:
        compared = compare(
            file, backend, judge, lengths=prompt_lengths, steps=steps, tolerance=limit, seed=seed, tell=tell
        )
        runs: list[Run] = []
        for run in compared:
            runs.append(run)
            if run.first_different(limit):
                break
        shown["runs"] = [_run(run, limit) for run in runs]
        shown["equal"] = all(run["equal"] for run in shown["runs"])
        shown["notes"] = list(_notes(file, against, runs, steps))
        if not shown["equal"]:
            tell("look for the first tensor that differs")
            del judge  # two copies of the weights in ONNX Runtime would be one too many
            shown |= _locate(file, backend, against, runs[-1], limit, shown["notes"])
        return shown
    finally:
        backend.close()


def _locate(
    file: PlanFile, backend: Any, against: Path, run: Run, tolerance: float, notes: list[str]
) -> dict[str, Any]:
    """What `first_difference` says, and into `notes` why it may say nothing."""
    from hjgc.tools.judge import Judge, producers, read_graph
    from hjgc.tools.locating import first_difference, named_values

    debug = file.debug()
    if debug is None:
        notes.append("the plan's debug section was stripped, so only logits were compared; compile again to keep it")
        return {"first_difference": None}
    made_by = producers(read_graph(against))
    values = [value for value in named_values(debug) if value in made_by]
    search = first_difference(file, debug, backend, Judge(against, values=values), run.steps, tolerance)
    unknown = len(named_values(debug)) - len(values)
    if unknown:
        notes.append(f"{unknown} values that the debug map names are not in {against}; they were not compared")
    notes += [
        f"ONNX value {value} has another shape than the plan keeps, not compared" for value in search.incomparable
    ]
    if search.first is None:
        notes.append(f"of {search.compared} tensors compared one by one, none differs by more than the tolerance")
        return {"first_difference": None}
    return {"first_difference": _difference(search.first, made_by[search.first.value])}


def _notes(file: PlanFile, against: Path, runs: list[Run], steps: int) -> Iterator[str]:
    from hjgc.plan_format.fingerprint import file_digest

    if file_digest(against) != file.plan.producer.onnx_sha256:
        yield f"{against} is not the file that the plan was compiled from; its values are matched by name"
    for run in runs:
        if run.prompt + steps > file.plan.model.context:
            yield f"prompt of {run.prompt}: decode stops at the plan's context of {file.plan.model.context} tokens"


def describe(file: PlanFile, weights: list[WeightCheck]) -> dict[str, Any]:
    return {
        "plan": str(file.path),
        "format": file.plan.format,
        "sections": file.section_lengths(),
        "weights": [
            {
                "name": entry.name,
                "bytes": entry.bytes,
                "problem": entry.problem or None,
                "sha256": entry.digest,
                "recorded_sha256": entry.recorded,
            }
            for entry in weights
        ],
        "equal": not any(entry.problem for entry in weights),
    }


def _run(run: Run, tolerance: float) -> dict[str, Any]:
    return {
        "prompt": run.prompt,
        "equal": run.first_different(tolerance) is None,
        "steps": [
            {
                "phase": result.step.phase,
                "start": result.step.start,
                "tokens": len(result.step.ids),
                "error": _number(result.error),
                "token": result.token,
                "judge_token": result.judge_token,
                "equal": result.equal(tolerance),
            }
            for result in run.results
        ],
    }


def _difference(first: Difference, node: str) -> dict[str, Any]:
    return {
        "phase": first.step.phase,
        "start": first.step.start,
        "tokens": len(first.step.ids),
        "launch": first.launch,
        "role": first.role,
        "onnx_value": first.value,
        "onnx_node": node,
        "error": _number(first.error),
        "magnitude": first.magnitude,
        "weights": list(first.weights),
    }


def _number(error: float) -> float | None:
    """JSON has no infinity: None stands for a logit that is not a number on one side."""
    return error if math.isfinite(error) else None


def text(shown: dict[str, Any]) -> Iterator[str]:
    sections = ", ".join(f"{kind} {console.size(length)}" for kind, length in shown["sections"].items())
    yield f"{shown['plan']}: plan {shown['format']}, whole and legal ({sections})"
    for entry in shown["weights"]:
        yield f"{entry['name']} ({console.size(entry['bytes'])}): {_weights(entry)}"
    if "runs" in shown:
        yield from _comparison(shown)
    if "calls" in shown:
        from hjgc.tools.functions.text import text as calls

        yield from calls(shown)
    yield "equal" if shown["equal"] else "different"


def _weights(entry: dict[str, Any]) -> str:
    digest, recorded = entry["sha256"], entry["recorded_sha256"]
    if entry["problem"]:
        return entry["problem"]
    if digest is None:
        return "the file compiled against, by size, head and samples"
    if recorded is None:
        return f"sha256 {digest}; the plan records none to compare with, compile with --digest to record it"
    return f"sha256 {digest}, as recorded"


def _comparison(shown: dict[str, Any]) -> Iterator[str]:
    yield f"against {shown['against']} on ONNX Runtime, tolerance {shown['tolerance']:g} ({shown['compute_dtype']})"
    rows = [_row(run) for run in shown["runs"]]
    yield console.table(
        ("prompt", "steps", "largest error", "tokens"), rows, right=("prompt", "steps", "largest error")
    )
    first = shown.get("first_difference")
    if first is not None:
        yield from _named(first)
    for note in shown["notes"]:
        yield f"note: {note}"


def _row(run: dict[str, Any]) -> tuple[object, ...]:
    steps = run["steps"]
    errors = [math.inf if step["error"] is None else step["error"] for step in steps]
    other = [number for number, step in enumerate(steps) if step["token"] != step["judge_token"]]
    tokens = f"differ at step {other[0]}" if other else "the same"
    if other and run["equal"]:
        tokens = f"{len(other)} chosen otherwise, between logits as close as the tolerance"
    return run["prompt"], len(steps), f"{max(errors):.2e}", tokens


def _named(first: dict[str, Any]) -> Iterator[str]:
    where = f"{first['phase']} of {first['tokens']} tokens after {first['start']}"
    yield f"first tensor that differs: {first['launch']}.{first['role']}, in {where}"
    error = "not a number" if first["error"] is None else f"{first['error']:.2e}"
    yield f"  largest error {error}, largest value {first['magnitude']:.2e}"
    yield f"  ONNX node {first['onnx_node']}, value {first['onnx_value']}"
    if first["weights"]:
        yield f"  reads {', '.join(first['weights'])}"
