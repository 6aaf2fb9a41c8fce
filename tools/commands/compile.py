"""How does `hjgc compile` turn a model into a plan?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hjgc.tools import console
from hjgc.tools.parameters import FILE, as_json, check_output, example, prompt_range, size_range

if TYPE_CHECKING:
    from hjgc.compiler import CompileResult


@click.command(
    short_help="Compile a model into a plan.",
    epilog=example("hjgc compile models/demo -o plan.hjg --target cpu --prompt 1:512 --context 1024"),
)
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The plan to write.")
@click.option(
    "--target", "targets", multiple=True, default=("cpu",), show_default=True, help="cpu or sm_NN; repeatable."
)
@click.option(
    "--prompt",
    type=prompt_range,
    metavar="LOW:HIGH",
    help="Prompt lengths to build graphs for; longer ones run in chunks.  [default: 1:512, or to the context]",
)
@click.option("--context", type=int, help="Tokens of prompt and answer together.  [default: the model's, at most 4096]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of weights, arithmetic and cache.  [default: float32 on the CPU, the checkpoint's on a GPU]",
)
@click.option("--digest", is_flag=True, help="Store the sha256 of every weight file (reads all of them).")
@click.option(
    "--portable/--no-portable",
    default=True,
    show_default=True,
    help="Beside code for a GPU, add code that GPUs without a --target can run.",
)
@click.option(
    "--size",
    "sizes",
    type=size_range,
    multiple=True,
    metavar="NAME=LOW:HIGH",
    help="The range of an axis that a function's inputs leave open; repeatable.  [default: 0:512]",
)
@click.option(
    "--kind",
    type=click.Choice(["decoder", "function"]),
    help="Refuse what is no decoder, or take it as a function.  [default: a decoder if it is one]",
)
@as_json
def command(
    model: Path,
    output: Path,
    targets: tuple[str, ...],
    prompt: tuple[int, int] | None,
    context: int | None,
    dtype: str | None,
    digest: bool,
    portable: bool,
    sizes: tuple[tuple[str, int, int], ...],
    kind: Literal["decoder", "function"] | None,
    as_json: bool,
) -> None:
    """Compile MODEL, an ONNX file or a Hugging Face folder, into a plan: a decoder that is served token by token, or,
    whatever else it is, a function of its inputs.

    Needs no GPU and copies no weights: the plan points into the weight files. HJGC_DUMP=DIR writes every stage as
    text."""
    check_output(output, source=model, suffix=".hjg")
    from hjgc.compiler import compile_model

    with console.stages() as tell:
        compiled = compile_model(
            model,
            output,
            targets=targets,
            prompt=prompt,
            context=context,
            dtype=dtype,
            digest=digest,
            portable=portable,
            sizes={name: (low, high) for name, low, high in sizes},
            kind=kind,
            progress=tell,
        )
    for line in compiled.notes:
        console.note(f"note: {line}")
    if as_json:
        console.result_json(as_data(compiled))
    else:
        console.result(summary(compiled))


def summary(compiled: CompileResult) -> str:
    plan = compiled.plan
    launches = ", ".join(f"{phase.name} {len(phase.launches)} launches" for phase in plan.phases)
    took = sum(compiled.seconds.values())
    islands = f" ({len(plan.islands)} of them islands in ONNX Runtime)" if plan.islands else ""
    context = f" at a context of {plan.model.context}" if plan.model.context else ""
    return (
        f"{compiled.path}: {console.size(compiled.bytes)} for {', '.join(plan.targets)}, {launches}{islands}; "
        f"serving takes {console.size(plan.ledger.total)}{context}; {took:.1f} s"
    )


def as_data(compiled: CompileResult) -> dict[str, Any]:
    plan = compiled.plan
    return {
        "path": str(compiled.path),
        "bytes": compiled.bytes,
        "notes": list(compiled.notes),
        "seconds": dict(compiled.seconds),
        "targets": list(plan.targets),
        "model": console.as_data(plan.model),
        "dtypes": console.as_data(plan.dtypes),
        "ledger": console.as_data(plan.ledger),
        "launches": {phase.name: len(phase.launches) for phase in plan.phases},
        "islands": len(plan.islands),
    }
