"""Do the files of all exporters become the plan of our own export, and does the plan compute what the file says?"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from hjgc.compiler import CompileResult, compile_model
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.structs import Plan, Port, StaticSegment
from hjgc.runtime.opening import open_plan, start_function
from hjgc.tools.verifying import Run, Step, prompt_steps, run_step
from tests.compiler.dialects.fixtures import FOLDER, NAMES, write_fixture
from tests.compiler.dialects.judging import DECODE, PROMPT, STEPS, compared, judge_of, opened
from tests.compiler.dialects.twins import HALVES, half_in, twin_of
from tests.exporters.make_fixtures import KEPT, fixture_name

TOLERANCE = 1e-4
"""Of logits up to 4: sums of float32 in another order."""
HALF_TOLERANCE = 1e-2
"""Where ONNX Runtime computes in float16 what the plan computes in float32: twice the largest difference seen."""
TABLE_TOLERANCES: dict[int | None, float] = {None: TOLERANCE, **dict(zip(HALVES, (5e-3, 4e-2), strict=True))}
"""Where the file looks up cosines and sines that were rounded to half precision: the plan computes with the angles that
they were made of. By their type, a few times the largest difference seen."""

NOT_OURS = "of causal attention with rotated heads, seen with"
REFUSED: dict[str, tuple[str, str]] = {
    # fixture: (the field named, words of the reason)
    "dynamo4-mistral-windowed": ("node node_view_6", NOT_OURS),
    "dynamo5-mistral-windowed": ("node node_view_4", NOT_OURS),
    "genai5-llama2-cuda-fp16-paged": ("input block_table", "found none of these by its name"),
    "genai5-llama2-cuda-fp32": ("output 'present.0.key'", "expected a node that makes it, found none"),
    "genai5-llama3-cpu-int4-asym": (
        "node /model/embed_tokens/GatherBlockQuantized",
        "scales or zero points are computed",
    ),
}
FIXED = {
    # a fixture whose sizes are numbers: that of the same exporter whose sizes are free
    "dynamo4-llama2-fixedshape": "dynamo4-llama2",
    "hf5-llama2-fixed-decode": "hf5-llama2-multi-decode",
    "optimum4-llama2-static": "optimum4-llama2",
}
NOT_ON_A_CPU = (
    "dynamo4-llama2-bf16", "genai5-llama2-cuda-bf16", "genai5-qwen3-cuda-fp16",
    "genai5-qwen3-cpu-fp16",  # its annotations are wrong: ONNX Runtime lays two values into one place
)  # fmt: skip
"""Graphs that ONNX Runtime cannot run there; their twins it can."""

COMPILED = tuple(name for name in NAMES if name not in REFUSED)
COMPARED = tuple(name for name in COMPILED if name not in FIXED)
HALF = tuple(name for name in COMPARED if "16" in name)
QUANTISED = tuple(name for name in COMPARED if "int" in name)
IN_FULL = tuple(name for name in QUANTISED if "cuda" not in name and "qdq" not in name)
WINDOWS = {
    "dynamo4-mistral": 32, "optimum4-mistral": 32, "genai4-mistral-cpu-fp32": 32, "genai5-mistral-cpu-fp32": 0,
    "dynamo4-llama2": 0,
}  # fmt: skip
WINDOWED = ("dynamo5-mistral", "hf5-mistral-multi-decode", "ts4-mistral")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products as small as these take longer on two threads, which wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def home() -> TemporaryDirectory[str]:
    """Removed when the process ends."""
    return TemporaryDirectory(prefix="hjgc-dialects-")


@cache
def written(name: str) -> Path:
    folder = Path(home().name) / name
    folder.mkdir()
    return write_fixture(name, folder)


@cache
def compiled(name: str, context: int = 100, longest: int = 64) -> CompileResult:
    """Some files have room for 64 tokens, and no more."""
    context, longest = (64, 32) if "-static" in name and name not in FIXED else (context, longest)
    model = written(name)
    return compile_model(model, model.with_name(f"{context}.hjg"), context=context, prompt=(1, longest))


def assert_equal(run: Run, tolerance: float, steps: int = STEPS) -> None:
    assert run.first_different(tolerance) is None
    assert len(run.results) == steps + 1


def logits_of(result: CompileResult, ids: Sequence[int]) -> NDArray[Any]:
    """The plan's own logits [S, V] behind a prompt of the first tokens and behind each of the others."""
    found: list[NDArray[Any]] = []
    with opened(result) as (file, backend):
        steps = [*prompt_steps(file, ids[:PROMPT])]
        steps += [Step("decode", "default", (token,), place) for place, token in enumerate(ids) if place >= PROMPT]
        for step in steps:
            run_step(file, backend, step)
            found.append(backend.read_logits().copy())
    return np.stack(found)


def launches(plan: Plan) -> list[tuple[Any, ...]]:
    """Of all phases, but for their names, which come from those of weights."""
    each = [launch for phase in plan.phases for launch in phase.launches]
    return [(launch.op, launch.operands, launch.attributes, launch.kernels) for launch in each]


@pytest.mark.parametrize("name", COMPILED)
def test_every_dialect_becomes_the_launches_of_our_own_export_in_one_static_segment(name: str) -> None:
    decode = compiled(name).plan.phase("decode")
    assert tuple(launch.op for launch in decode.launches) == DECODE
    (segment,) = next(schedule.segments for schedule in decode.schedules if schedule.name == "default")
    assert isinstance(segment, StaticSegment)


@pytest.mark.parametrize("name", COMPARED)
def test_the_plan_computes_what_the_file_says(name: str) -> None:
    result = compiled(name)
    judge = judge_of(twin_of(written(name)), result.plan)
    tolerance = TABLE_TOLERANCES[half_in(onnx.load(written(name), load_external_data=False).graph, "cos_cache")]
    assert_equal(compared(result, judge, tolerance), tolerance)


@pytest.mark.parametrize("name", [name for name in HALF if name not in NOT_ON_A_CPU])
def test_onnx_runtime_in_half_precision_differs_by_its_rounding_only(name: str) -> None:
    result = compiled(name)
    judge = judge_of(written(name), result.plan)
    assert_equal(compared(result, judge, HALF_TOLERANCE), HALF_TOLERANCE)


@pytest.mark.parametrize("name", IN_FULL)
def test_onnx_runtime_agrees_on_quantised_weights_where_it_does_not_quantise_activations(name: str) -> None:
    model = onnx.load(written(name), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1  # float32
    path = written(name).with_name("level_1.onnx")
    path.write_bytes(model.SerializeToString())
    result = compiled(name)
    assert_equal(compared(result, judge_of(path, result.plan), TOLERANCE), TOLERANCE)


@pytest.mark.parametrize(("name", "window"), WINDOWS.items())
def test_a_plan_has_the_window_that_its_file_has_also_where_the_exporter_dropped_it(name: str, window: int) -> None:
    attributes = [launch.attributes for launch in compiled(name).plan.phase("decode").launches]
    assert {found["window"] for found in attributes if "window" in found} == {window}


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_turns_the_cache_into_a_ring_that_goes_round(name: str) -> None:
    result = compiled(name, context=200, longest=32)
    (rows,) = {state.shape[1] for state in result.plan.states if state.name.startswith("cache.")}
    assert 2 * rows <= PROMPT + 150
    judge = judge_of(written(name), result.plan)
    assert_equal(compared(result, judge, TOLERANCE, steps=150), TOLERANCE, steps=150)


@pytest.mark.parametrize("name", FIXED)
def test_sizes_that_a_file_fixes_make_no_difference_to_its_plan(name: str) -> None:
    fixed, free = compiled(name), compiled(FIXED[name])
    assert launches(fixed.plan) == launches(free.plan)
    ids = np.random.default_rng(1).integers(0, fixed.plan.model.vocab_size, PROMPT + STEPS).tolist()
    assert np.array_equal(logits_of(fixed, ids), logits_of(free, ids))


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_decoder_of_ours_is_refused_as_one_by_place_and_reason(name: str) -> None:
    field, words = REFUSED[name]
    model = written(name)
    with pytest.raises(CompileError) as caught:
        compile_model(model, model.with_name("refused.hjg"), kind="decoder")
    assert caught.value.place == str(written(name))
    assert str(caught.value.field) == field
    assert words in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in REFUSED if "mistral" in name])
def test_what_is_refused_as_a_decoder_is_a_function_that_computes_the_same(name: str) -> None:
    model = written(name)
    result = compile_model(model, model.with_name("function.hjg"), sizes={"batch_size": (1, 1)})
    assert "compiled as a function" in result.notes[0]
    judge, random = onnxruntime.InferenceSession(model), np.random.default_rng(4)
    with start_function(open_plan(result.path)) as function:
        past = 0
        for new in (PROMPT, 1, 1):
            inputs = {port.name: _made_up(port, random, past, new) for port in function.inputs}
            expected = judge.run(None, inputs)
            found = function(inputs)
            for name_of, want in zip((port.name for port in function.outputs), expected, strict=True):
                assert np.abs(found[name_of] - want).max() < TOLERANCE
            past += new


def _made_up(port: Port, random: np.random.Generator, past: int, new: int) -> NDArray[Any]:
    """Ids, marks and positions of a sequence without padding; numbers for a cache."""
    if "past" in port.name or "cache" in port.name:
        assert port.shape is not None
        heads, size = (axis for axis in port.shape[1::2] if isinstance(axis, int))
        return random.standard_normal((1, heads, past, size), np.float32)
    if "mask" in port.name:
        return np.ones((1, past + new), np.int64)
    if "position" in port.name:
        return np.arange(past, past + new, dtype=np.int64)[None]
    return random.integers(0, 100, (1, new))


def test_the_fixtures_are_those_that_the_script_makes() -> None:
    assert sorted(map(fixture_name, KEPT)) == sorted(NAMES)


@pytest.mark.parametrize("word", [b"/home/", b"/tmp/", b"/usr/", b"site-packages", b'.py"', b"stack_trace"])
def test_no_fixture_names_a_file_of_whoever_made_it(word: bytes) -> None:
    found = [path.name for path in FOLDER.glob("*.gz") if word in gzip.decompress(path.read_bytes())]
    assert found == []


def test_the_fixtures_stay_small() -> None:
    sizes = [path.stat().st_size for path in FOLDER.glob("*.gz")]
    assert max(sizes) <= 20 << 10
    assert sum(sizes) <= 1 << 20
