"""What becomes of a file that an exporter wrote: which launches, how much of them static, how near its logits?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from onnx import TensorProto

from hjgc.compiler import CompileResult, compile_model
from hjgc.plan_format.errors import CompileError, InputError
from hjgc.plan_format.structs import Phase, StaticSegment
from tests.compiler.dialects.judging import DECODE, ROOM, compared, judge_of
from tests.compiler.dialects.twins import half_in, twin_of

MODELS = Path(__file__).parents[2] / ".exporters" / "models"
TOLERANCES: dict[int | None, float] = {None: 1e-4, TensorProto.FLOAT16: 2e-2, TensorProto.BFLOAT16: 2e-1}
"""Of logits up to 16, by the element type of constants in half precision: a plan computes with the angles that a
rounded table of cosines was made of, and with the scale of attention before it was rounded."""


@dataclass(frozen=True)
class Case:
    """What one call of an exporter left: `about.json` of `make_models.py`."""

    exporter: str
    architecture: str
    variant: str
    versions: dict[str, str]
    error: str


@dataclass(frozen=True)
class Found:
    """What became of one file. `left` are launches of decode that our own export lacks, `error` is the largest
    difference of logits, or None and `why_not` says why they were not compared."""

    refused: str = ""
    left: tuple[str, ...] = ()
    per_layer: int = 0
    static: float = 0
    error: float | None = None
    tolerance: float = 0
    why_not: str = ""
    notes: tuple[str, ...] = ()


def case_of(folder: Path) -> Case:
    return Case(**json.loads((folder / "about.json").read_text(encoding="utf-8")))


def folders() -> list[Path]:
    return sorted(path.parent for path in MODELS.glob("*/about.json"))


def files(folder: Path) -> list[Path]:
    return [] if case_of(folder).error else sorted(folder.glob("*.onnx"))


@cache
def examine(model: Path) -> Found:
    """On a copy: the files that are compared with the plan lie beside the model."""
    with TemporaryDirectory(prefix="hjgc-exporters-") as home:
        folder = shutil.copytree(model.parent, Path(home) / "model")
        copy = folder / model.name
        try:
            result = _compiled(copy, case_of(folder).variant)
        except (CompileError, InputError) as error:
            problem = error.problem.partition(", written by ")[0]
            return Found(refused=f"{error.field}: {problem}" if error.field else problem)
        return _found(copy, result)


def _compiled(model: Path, variant: str) -> CompileResult:
    longest = ROOM if variant == "static" else 100
    return compile_model(model, model.with_suffix(".hjg"), context=longest, prompt=(1, longest // 2), kind="decoder")


def _found(model: Path, result: CompileResult) -> Found:
    decode = result.plan.phase("decode")
    ops = [launch.op for launch in decode.launches]
    error, tolerance, why_not = _difference(model, result)
    return Found(
        left=tuple(sorted(set(ops) - set(DECODE))),
        per_layer=sum(launch.name.startswith("layers.1.") for launch in decode.launches),
        static=_static_share(decode),
        error=error,
        tolerance=tolerance,
        why_not=why_not,
        notes=tuple(note.replace(f"{model.parent}/", "") for note in result.notes),
    )


def _static_share(phase: Phase) -> float:
    """Of the launches of the default schedule."""
    schedule = next(schedule for schedule in phase.schedules if schedule.name == "default")
    static = sum(len(each.launches) for each in schedule.segments if isinstance(each, StaticSegment))
    return static / sum(len(each.launches) for each in schedule.segments)


def _difference(model: Path, result: CompileResult) -> tuple[float | None, float, str]:
    """The largest error of the logits, what it may be, and, if there is none, why."""
    graph = onnx.load(model, load_external_data=False).graph
    tolerance = TOLERANCES[half_in(graph)]
    if any(value.name == "input_ids" and value.type.tensor_type.shape.dim[0].dim_value for value in graph.input):
        return None, tolerance, "not run: its sizes are fixed, two sequences among them"
    try:
        run = compared(result, judge_of(twin_of(model), result.plan), tolerance)
    except InputError as error:
        return None, tolerance, f"not run: {error.problem}"
    return max(each.error for each in run.results), tolerance, ""


def all_found() -> Iterator[tuple[Case, str, Found]]:
    """Case, name of the file without its ending, and what became of it; of an export that failed, no name."""
    torch.set_num_threads(1)
    for folder in folders():
        case = case_of(folder)
        for model in files(folder):
            yield case, model.stem, examine(model)
        if case.error:
            yield case, "", Found()
