"""How fast is a plan on this machine, and how fast are others beside it?"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hjgc.tools import console
from hjgc.tools.benching.options import modes, numbers, peer_names
from hjgc.tools.parameters import FILE, as_json, check_output, example, refuse_options, size_value

if TYPE_CHECKING:
    from hjgc.plan_format.structs import Plan

THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")
"""What decides how the libraries' threads wait for each other; --threads sets their numbers over these."""
ON_THE_CPU = "hjgc bench plan.hjg --lengths 10,100 --hf models/demo --onnx demo.onnx --repeat 10 -o bench.json"
ON_A_GPU = "hjgc bench plan.hjg --device cuda --mode plain,graph,hybrid --hf models/7b --repeat 1000 --plot out.png"
OF_A_FUNCTION = "hjgc bench function.hjg --size batch=2 --calls 200 --against model.onnx"
OF_DECODERS = (
    "lengths", "decode", "contexts", "repeat", "cold", "capturing", "rest", "launches", "peers", "hf", "onnx", "plot",
)  # fmt: skip
OF_FUNCTIONS = ("sizes", "feed", "calls", "against")


@click.command(
    short_help="Measure time to first token and per token, or per call.",
    epilog=f"\b\nOn the CPU:\n  {ON_THE_CPU}\n  {OF_A_FUNCTION}\n\n{example(ON_A_GPU)}",
)
@click.argument("plan", type=FILE)
@click.option("--lengths", type=numbers, metavar="N,N,...", help="Prompt lengths.  [default: 10,50,100,200]")
@click.option(
    "--decode", type=click.IntRange(0), default=64, show_default=True, help="Further tokens after each prompt."
)
@click.option("--contexts", type=numbers, metavar="N,N,...", help="GPU: tokens cached when decoding is measured.")
@click.option("--repeat", type=click.IntRange(1), help="Warm answers at each length.  [default: 5; on a GPU 100]")
@click.option("--cold", type=click.IntRange(0), metavar="N", help="GPU: fresh processes, a length each.  [default: 2]")
@click.option(
    "--capturing",
    type=click.IntRange(0),
    metavar="N",
    help="GPU: fresh processes watched while they capture.  [default: 0]",
)
@click.option(
    "--rest", type=click.FloatRange(0, 60e3), metavar="MS", help="GPU: without work before each prompt.  [default: 0]"
)
@click.option("--launches", is_flag=True, help="GPU, a decoder: time each kind of launch too, for `hjgc view --bench`.")
@click.option(
    "--mode",
    "mode",
    type=modes,
    metavar="plain,jit,graph,hybrid",
    default="both",
    show_default=True,
    help="Launch one by one; build all kernels first; replay graphs; graphs with the caller between them. "
    "both: plain,graph.",
)
@click.option("--threads", type=click.IntRange(1), help="Of every system, on the CPU.  [default: the cores, at most 2]")
@click.option(
    "--peers",
    type=peer_names,
    metavar="eager,compile,ort,ort-cuda",
    help="ort is for the CPU, ort-cuda for a GPU (needs the extra ort-gpu).  [default: those whose model is given]",
)
@click.option("--hf", type=FILE, metavar="DIR", help="The checkpoint, for eager and compile (transformers).")
@click.option("--onnx", type=FILE, metavar="MODEL.onnx", help="The model, for ort and ort-cuda (ONNX Runtime).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other prompts.")
@click.option("--weights", type=FILE, help="The folder of the plan's weights.  [default: the plan's folder]")
@click.option("--device", help="Where the plan runs: cpu or cuda.  [default: what the plan is for]")
@click.option("--strict", is_flag=True, help="GPU: refuse what the plan has no code for, rather than build it.")
@click.option("--rebuild", is_flag=True, help="GPU: run no code of the plan; build all from installed templates.")
@click.option("-o", "--output", type=FILE, help="Write the result to this file too, as JSON.")
@click.option("--plot", type=FILE, metavar="OUT.png", help="Draw the result (needs the extra plot).")
@click.option(
    "--size",
    "sizes",
    type=size_value,
    multiple=True,
    metavar="NAME=VALUE",
    help="A function: a size of made-up inputs; repeatable.  [default: the highest, at most 128]",
)
@click.option("--feed", type=FILE, metavar="X.npz", help="A function: its inputs, arrays by name.  [default: made up]")
@click.option("--calls", type=click.IntRange(1), metavar="N", help="A function: calls that count.  [default: 100]")
@click.option("--against", type=FILE, metavar="MODEL.onnx", help="A function: its model, for ONNX Runtime beside it.")
@as_json
def command(
    plan: Path,
    mode: tuple[str, ...],
    threads: int | None,
    weights: Path | None,
    device: str | None,
    strict: bool,
    rebuild: bool,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure how long PLAN takes to the first token and for each further one; of a PLAN that is a function, how long a
    call takes.

    Every system runs in a process of its own and gets the same token ids; their greedy tokens are compared. On the CPU
    they take turns. On a GPU each has the device to itself, and its times stand beside the floors that the device's own
    limits set, measured in the same run. docs/benchmarks.md says what is measured and how.

    A function is called with the inputs of --feed, or with made-up ones: launch by launch, and by graphs."""
    _check_outputs(plan, output, plot)
    from hjgc import plan_format
    from hjgc.tools.benching import systems

    with plan_format.load(plan) as file:
        loaded = file.plan
    _check_options(loaded, mode)
    on_gpu = systems.on_a_device(loaded, device)
    served_on = device if on_gpu else "cpu"
    specs = systems.plan_specs(plan, mode, weights, served_on, strict=strict, rebuild=rebuild)
    options["threads"] = threads or min(2, os.cpu_count() or 1)
    measure = _measure_function if loaded.is_function else _measure_decoder
    measured = measure(loaded, specs, on_gpu, **options)
    shown: dict[str, Any] = {"plan": _plan(plan, loaded), "machine": machine(gpu=on_gpu), **measured}
    _write(shown, output, plot)
    if as_json:
        console.result_json(shown)
    else:
        console.result(_text(shown, on_gpu))
    return int(shown.get("interrupted") or 0)


def _check_options(plan: Plan, modes: Sequence[str]) -> None:
    """Raises InputError for options that make no sense for this plan."""
    if not plan.is_function:
        refuse_options(OF_FUNCTIONS, "expected a plan that is a function with this option, found a decoder")
        return
    from hjgc.tools.benching.function import check_modes

    refuse_options(OF_DECODERS, "expected a decoder with this option, found a plan that is a function")
    check_modes(modes)


def _measure_function(
    plan: Plan,
    specs: Mapping[str, Any],
    on_gpu: bool,
    *,
    sizes: Sequence[tuple[str, int]],
    feed: Path | None,
    calls: int | None,
    against: Path | None,
    threads: int,
    seed: int,
    **of_decoders: Any,
) -> dict[str, Any]:
    from hjgc.tools.benching.function import bench_function

    del of_decoders  # none was given
    with console.stages() as tell:
        return bench_function(
            plan, specs, sizes=dict(sizes), feed=feed, against=against, calls=calls, threads=threads, seed=seed,
            on_gpu=on_gpu, tell=tell,
        )  # fmt: skip


def _measure_decoder(
    plan: Plan,
    specs: Mapping[str, Any],
    on_gpu: bool,
    *,
    peers: tuple[str, ...] | None,
    hf: Path | None,
    onnx: Path | None,
    **asked: Any,
) -> dict[str, Any]:
    from hjgc.tools.benching import options, systems

    paths = systems.peer_paths(peers, hf, onnx, device=on_gpu)
    wanted = {name: value for name, value in asked.items() if name not in OF_FUNCTIONS}
    settings = options.settings(plan, device=on_gpu, **wanted)
    with console.stages() as tell:
        if on_gpu:
            from hjgc.tools.benching.device import bench_device

            return bench_device(plan, systems.contenders(specs, plan, paths, settings), settings, tell)
        from hjgc.tools.benchmarking import bench

        return bench({**specs, **systems.peer_specs(plan, paths, settings)}, settings, tell)


def _check_outputs(plan: Path, output: Path | None, plot: Path | None) -> None:
    if output is not None:
        check_output(output, source=plan, suffix=".json")
    if plot is not None:
        from hjgc.tools.benching.plot import check_library

        check_output(plot, source=plan, suffix=".png")
        check_library()


def _write(shown: dict[str, Any], output: Path | None, plot: Path | None) -> None:
    from hjgc.plan_format.files import write_atomically

    if output is not None:
        write_atomically(output, (json.dumps(shown, indent=2) + "\n").encode())
    if plot is not None:
        from hjgc.tools.benching.plot import png

        write_atomically(plot, png(shown))


def _text(shown: dict[str, Any], on_gpu: bool) -> str:
    from hjgc.tools.benching import calls_text, device_text, text

    if "calls" in shown["settings"]:
        return "\n".join(calls_text.text(shown))
    return "\n".join(device_text.text(shown) if on_gpu else text.text(shown))


def _plan(path: Path, plan: Plan) -> dict[str, Any]:
    about = {
        "path": str(path),
        "model": plan.model.name,
        "targets": list(plan.targets),
        "weight_bytes": plan.ledger.weights,
    }
    if plan.is_function:
        return about
    prompt = plan.producer.options.get("prompt")
    return about | {"compute_dtype": plan.dtypes.compute, "context": plan.model.context, "prompt": prompt}


def machine(*, gpu: bool = False) -> dict[str, Any]:
    import dataclasses

    from hjgc.tools.machine import cuda, memory, processor

    cpu = processor()
    found = {
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
    return found | ({"cuda": dataclasses.asdict(cuda())} if gpu else {})
