"""How does `hjgc bench` measure a plan that is a function: which systems, called with what?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Phase, Plan
from hjgc.runtime.call_inputs import CallInputs
from hjgc.runtime.function import PHASE
from hjgc.tools.benching.calls import REFERENCE, CallSettings, bench_calls
from hjgc.tools.benching.systems import Spec
from hjgc.tools.calling import read_arrays, write_arrays
from hjgc.tools.functions.made_up import WORDS, call_sizes, make_inputs

CALLS = 100
MODES = ("plain", "jit", "graph")


def bench_function(
    plan: Plan,
    specs: Mapping[str, Spec],
    *,
    sizes: Mapping[str, int],
    feed: Path | None,
    against: Path | None,
    calls: int | None,
    threads: int,
    seed: int,
    on_gpu: bool,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Call every system with the inputs of `feed`, or with made-up ones. Raises HjgcError for what cannot be called, or
    fails."""
    phase = plan.phase(PHASE)
    if against is not None and not against.is_file():
        raise InputError(against, "expected an ONNX file, found no such file", field="--against")
    found, inputs = _inputs(phase, sizes, feed, seed)
    named = (None, WORDS) if feed is None else (str(feed), None)
    settings = CallSettings(calls or CALLS, threads, seed, found, *named)
    with tempfile.TemporaryDirectory(prefix="hjgc-") as name:
        folder = Path(name)
        path = folder / "inputs.npz"
        write_arrays(path, inputs)
        every = _with_inputs(specs, against, threads, path)
        return bench_calls(phase, every, settings, folder, tell, alone=on_gpu)


def check_modes(modes: Sequence[str]) -> None:
    """Raises InputError for a mode that functions have not."""
    for mode in modes:
        if mode not in MODES:
            problem = f"expected {', '.join(MODES[:-1])} or {MODES[-1]} for a plan that is a function, found {mode}"
            raise InputError("--mode", problem, next_step="leave it out")


def _inputs(
    phase: Phase, sizes: Mapping[str, int], feed: Path | None, seed: int
) -> tuple[Mapping[str, int], Mapping[str, Any]]:
    """The inputs of each call, and the sizes that they have."""
    if feed is None:
        found = call_sizes(phase, sizes)
        return found, make_inputs(phase, found, seed)
    if sizes:
        raise InputError("--size", "expected made-up inputs, found --feed too", next_step="leave one of them out")
    inputs = read_arrays(feed)
    rows, _ = CallInputs(phase).check(inputs)
    return dict(zip((size.name for size in phase.sizes), rows, strict=True)), inputs


def _with_inputs(specs: Mapping[str, Spec], against: Path | None, threads: int, inputs: Path) -> dict[str, Spec]:
    every = {name: {**spec, "kind": "function", "inputs": str(inputs)} for name, spec in specs.items()}
    if against is not None:
        every[REFERENCE] = {
            "kind": "ort_function", "model": str(against), "inputs": str(inputs), "threads": threads,
        }  # fmt: skip
    return every
