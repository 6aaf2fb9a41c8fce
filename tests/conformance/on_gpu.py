"""What becomes of ONNX's backend suite on a GPU?

    python -m tests.conformance.on_gpu compile FOLDER [--target TARGET] [--islands]
    python -m tests.conformance.on_gpu run FOLDER [--islands] [--after NAME]

The first compiles every case for a GPU (`sm_90`), on any machine, and leaves the plans in FOLDER; the second runs them
on this machine's GPU, compares as on the CPU, and prints the counts and each case that failed here. Kernels are built
in this process and kept in hjgc's cache: the first time takes half an hour. With `--islands` only cases that have an
island on the CPU, which takes a minute. Each case's name is printed before it is run: one may end the process, and
`--after` goes on behind it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase

from hjgc.compiler import build_variants, compile_model
from hjgc.compiler.build import build
from hjgc.compiler.build_variants import VariantKey
from hjgc.compiler.build_worker import built_variant
from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.errors import HjgcError
from hjgc.runtime.backends.cuda_driver import Driver
from hjgc.runtime.opening import load
from tests.conformance.cases import all_cases, data_sets, model_of
from tests.conformance.expected import read
from tests.conformance.running import Result, check_outputs


def compile_all(folder: Path, cases: Iterable[TestCase], target: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_variants, "_build", _build_here)
        for case in cases:
            with suppress(HjgcError), warnings.catch_warnings(action="ignore"):
                _compile(case, folder, target)


def _build_here(
    keys: Sequence[VariantKey],
    built: MutableMapping[VariantKey, BuiltVariant],
    progress: Callable[[str], None],
    *,
    lenient: bool = False,
) -> None:
    """In this process: starting one for each case would take longer than all builds."""
    del progress, lenient
    for key in keys:
        name, target, axes = key
        built[key] = built_variant(build(name, dict(axes), target))


def _compile(case: TestCase, folder: Path, target: str) -> None:
    model, plan = folder / f"{case.name}.onnx", folder / f"{case.name}.hjg"
    if not plan.exists():
        onnx.save_model(model_of(case), model)
        found = compile_model(model, plan, targets=(target,), portable=False, kind="function")
        if not found.plan.files:
            model.unlink()


def run_all(folder: Path, cases: Iterable[TestCase]) -> None:
    context = Driver()  # held, since making one takes longer than a case
    try:
        _run_all(folder, cases)
    finally:
        context.close()


def _run_all(folder: Path, cases: Iterable[TestCase]) -> None:
    found: dict[str, Counter[str]] = {}
    for case in cases:
        print(case.name, file=sys.stderr, flush=True)
        result, reason = _run(case, folder / f"{case.name}.hjg")
        kind = "node" if case.kind == "node" else "model"
        found.setdefault(kind, Counter())[result] += 1
        if result == Result.FAILED:
            print(f"{case.name}: {reason}", flush=True)
    for kind, counts in found.items():
        print(f"{kind} cases: {_counted(counts)}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(result, 0)} {result}" for result in Result)


def _run(case: TestCase, plan: Path) -> tuple[Result, str]:
    if not plan.exists():
        return Result.FAILED, "no plan"
    try:
        with warnings.catch_warnings(action="ignore"), load(plan, device="cuda", capture=False) as function:
            names = [port.name for port in function.inputs]
            for given, wanted in data_sets(case, model_of(case)):
                found: Mapping[str, Any] = function(dict(zip(names, given, strict=False)))
                check_outputs(case, wanted, list(found.values()))
            return (Result.ISLAND if function.plan.islands else Result.NATIVE), ""
    except Exception as error:  # whatever a case meets is what became of it
        return Result.FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _chosen(islands: bool, after: str | None) -> Iterator[TestCase]:
    cases, known = iter(all_cases()), read()
    if after is not None:
        cases = islice(dropwhile(lambda case: case.name != after, cases), 1, None)
    return (case for case in cases if not islands or known.result(case.name) == Result.ISLAND)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("compile", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--islands", action="store_true", help="only cases that have an island on the CPU")
    parser.add_argument("--after", metavar="NAME", help="leave out this case and those before it")
    given = parser.parse_args()
    cases = _chosen(given.islands, given.after)
    if given.what == "compile":
        compile_all(given.folder, cases, given.target)
    else:
        run_all(given.folder, cases)


if __name__ == "__main__":
    main()
