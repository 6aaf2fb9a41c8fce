"""How does `hjgc run` answer a prompt?"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, check_output, example, prompt_text, token_ids

if TYPE_CHECKING:
    from hjgc import LLM, Completion, Piece

EARLY = {"context": "prompt and answer fill the plan's context", "deadline": "the deadline passed"}


@click.command(
    short_help="Answer a prompt with a plan, or call one that is a function.",
    epilog=example(
        'hjgc run plan.hjg --prompt "The list of" --max-tokens 32 --temperature 0 --stats',
        "hjgc run function.hjg --feed inputs.npz -o outputs.npz",
    ),
)
@click.argument("plan", type=FILE)
@click.option("--prompt", help="The text to continue; - reads standard input.")
@click.option("--ids", type=token_ids, metavar="1,2,3", help="The prompt as token ids, instead of --prompt.")
@click.option("--feed", type=FILE, metavar="X.npz", help="A function's inputs, arrays by name, instead of a prompt.")
@click.option("-o", "--output", type=FILE, metavar="Y.npz", help="With --feed: write the outputs, arrays by name.")
@click.option("--max-tokens", type=int, default=64, show_default=True, help="The longest answer.")
@click.option("--temperature", type=float, help="0: always the best token.")
@click.option("--top-k", type=int, help="Choose among so many of the best; 0: all.")
@click.option("--top-p", type=float, help="Choose among the fewest best that reach this probability.")
@click.option("--min-p", type=float, help="Choose among those with so much of the best one's probability.")
@click.option("--repetition-penalty", type=float, help="Over 1: tokens met before become less likely.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, help="End before this text; repeatable.")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up after this.")
@click.option("--weights", type=FILE, help="The folder of the weights.  [default: the plan's folder]")
@click.option("--device", help="Where to serve: cpu or cuda.  [default: what the plan is for]")
@click.option("--strict", is_flag=True, help="GPU: refuse what the plan has no code for, rather than build it.")
@click.option("--rebuild", is_flag=True, help="GPU: run no code of the plan; build all from installed templates.")
@click.option("--trace", type=FILE, metavar="OUT.json", help="Write a timeline of the request, for Perfetto.")
@click.option("--stats", is_flag=True, help="Afterwards, times and graph states on standard error.")
@as_json
def command(
    plan: Path,
    prompt: str | None,
    ids: tuple[int, ...] | None,
    feed: Path | None,
    output: Path | None,
    max_tokens: int,
    stop: tuple[str, ...],
    deadline: float | None,
    weights: Path | None,
    device: str | None,
    strict: bool,
    rebuild: bool,
    trace: Path | None,
    stats: bool,
    as_json: bool,
    **sampling: float | None,
) -> None:
    """Answer one prompt with PLAN, each piece of text as soon as it is certain; or, with --feed, call a PLAN that is a
    function.

    What no option says about choosing tokens is as the model's generation_config.json asks for."""
    if sum(given is not None for given in (prompt, ids, feed)) != 1:
        raise click.UsageError("expected one of --prompt, --ids and --feed", click.get_current_context())
    if feed is not None:
        from hjgc.tools.calling import call

        call(plan, feed, output, weights=weights, device=device, deadline=deadline, stats=stats, as_json=as_json)
        return
    if output is not None:
        raise click.UsageError("-o writes the outputs of a call with --feed", click.get_current_context())
    asked = list(ids) if ids is not None else prompt_text(prompt or "")
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}

    if trace is not None:
        check_output(trace, source=plan, suffix=".json")
    with console.stages() as tell:
        tell("load")
        llm = _open(plan, weights, device, strict, rebuild, tell)
    with llm:
        params = dataclasses.replace(llm.defaults, max_tokens=max_tokens, stop=stop, **given)
        with _traced(llm, trace), llm.generate(asked, params, stream=True, deadline=deadline) as answer:
            for piece in answer:
                if not as_json:
                    click.echo(_shown(piece, llm), nl=False)
        completion, report = answer.completion, llm.session.report()
    if as_json:
        console.result_json(as_data(completion, report))
    else:
        click.echo()
    if completion.finish_reason in EARLY:
        console.note(f"the answer ended early: {EARLY[completion.finish_reason]}")
    if stats:
        console.note("\n".join(stats_lines(completion, report)))


@contextmanager
def _traced(llm: LLM, output: Path | None) -> Generator[None]:
    """Whatever ends the answer, what was seen of it is written."""
    if output is None:
        yield
        return
    with llm.session.trace() as trace:
        try:
            yield
        finally:
            trace.save(output)


def _open(
    plan: Path,
    weights: Path | None,
    device: str | None,
    strict: bool,
    rebuild: bool,
    tell: Callable[[str], None],
) -> LLM:
    from hjgc import LLM

    trust = "templates" if rebuild else "plan"
    return LLM(plan, weights=weights, device=device, strict=strict, trust=trust, progress=tell)


def _shown(piece: Piece, llm: LLM) -> str:
    """Its text, or its token ids where the plan names no tokenizer."""
    return piece.text if llm.tokenizer is not None else "".join(f"{token} " for token in piece.token_ids)


def as_data(completion: Completion, report: Mapping[str, Any]) -> dict[str, Any]:
    """Times in milliseconds."""
    timings = completion.timings
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "prompt_tokens": completion.prompt_tokens,
        "finish_reason": completion.finish_reason,
        "ttft_ms": None if timings.ttft is None else round(1000 * timings.ttft, 3),
        "per_token_ms": [round(1000 * seconds, 3) for seconds in timings.per_token],
        "report": report,
    }


def stats_lines(completion: Completion, report: Mapping[str, Any]) -> Iterator[str]:
    timings, totals = completion.timings, report["totals"]
    yield f"tokens: prompt {completion.prompt_tokens}, answer {len(completion.token_ids)} ({completion.finish_reason})"
    if timings.ttft is not None:
        yield f"time to first token: {1000 * timings.ttft:.2f} ms"
    if timings.mean_per_token is not None:
        each = 1000 * timings.mean_per_token
        p50, p99 = (1000 * percentile(timings.per_token, share) for share in (0.5, 0.99))
        yield f"time per further token: {each:.2f} ms (p50 {p50:.2f}, p99 {p99:.2f})"
    static = [entry for entry in report["segments"] if entry["kind"] == "static"]
    states = ", ".join(f"{count} {state}" for state, count in Counter(entry["state"] for entry in static).items())
    yield f"segments on {report['target']}: {states}"
    ran = f"{totals['hits']} by graph, {totals['plain_runs']} plainly, {totals['dynamic_runs']} dynamic"
    yield f"segment runs: {ran}; graphs hold {console.size(totals['bytes'])}"
    yield from code_lines(report["code"])
    for entry in static:
        if entry["why"]:
            yield f"{entry['phase']} {entry['schedule']} {entry['key']}: {entry['state']}: {entry['why']}"


def code_lines(code: Mapping[str, Any] | None) -> Iterator[str]:
    """What is to be said of the device code: nothing where all was in the plan."""
    if code is None:
        return
    if code["why"]:
        yield f"code of {code['target']}: {code['why']}"
    builds = code["just_in_time"]
    if builds["built"] or builds["failed"]:
        reasons = ", ".join(f"{count} for {reason}" for reason, count in builds["reasons"].items()) or "none"
        yield f"kernels built just in time: {reasons}; {builds['failed']} failed; {builds['seconds']:.1f} s"
    yield from code["swaps"]
    for failure in builds["failures"]:
        yield f"{failure['what']} ({failure['reason']}): {failure['why']}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
