"""Do the templates for prompts mean what their ops mean (under Triton's interpreter), and build for every chip?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from hjgc.compiler.build import build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.prefill_choice import choose_prefill, range_ends
from hjgc.compiler.kernels.prefill_tiles import RANGES, range_of, tiles
from hjgc.plan_format.structs import DTypes
from tests.compiler.prefill_on_cpu import ON_CPU
from tests.prefill_cases import AxisValues, Case, attention, inputs, product

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).with_name("prefill_on_cpu.py")
TILE = {"block_m": 64, "block_n": 128}
BUILT = (
    product("linear", "prefill_linear", 4096, 11008, lengths=(1,), bias=False, residual=True, **TILE),
    product("parts", "prefill_linear_parts", 4096, 11008, lengths=(1,), splits=2, row_capacity=512, **TILE),
    product("gated", "prefill_gated_linear", 22016, 4096, lengths=(1,), bias=True, norm=False, **TILE),
    inputs("inputs", 32, 8, 128, 4096, lengths=(1,), capacity=2049, head_norm=True, norm=True, **TILE),
    attention("attention", 32, 8, 80, lengths=(1,), capacity=2049, block_m=64, block_n=64),
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    output = tmp_path_factory.mktemp("prefill") / "outcomes.json"
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    run = subprocess.run(
        [sys.executable, PROGRAM, output], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(output.read_text())


@pytest.mark.parametrize("name", [case.name for case in ON_CPU])
def test_a_template_means_its_op_at_every_length(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["error"] < 1e-3


@pytest.mark.parametrize("name", [case.name for case in ON_CPU])
def test_bucket_and_exact_grid_give_the_same_bits(name: str, outcomes: dict[str, dict[str, float]]) -> None:
    assert outcomes[name]["same"]


@pytest.mark.parametrize("name", [case.name for case in ON_CPU])
def test_what_lies_past_the_true_length_is_neither_read_nor_written(
    name: str, outcomes: dict[str, dict[str, float]]
) -> None:
    assert outcomes[name]["untouched"]


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("case", BUILT, ids=lambda case: case.name)
def test_it_builds_for_every_chip(
    case: Case, target: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    pdl = target >= "sm_90" or len(target) > len("sm_90")
    axes: AxisValues = case.axes | {"pdl": pdl}
    built = build(case.template, axes, target)
    assert built.cubin[:4] == b"\x7fELF"
    assert (built.entry, built.threads, built.pdl) == (case.template, 128, pdl)
    assert built.shared_bytes <= 100 << 10, "more than the smallest of these chips has"


STEPS = {
    "attention_inputs": "prefill_attention_inputs",
    "attention": "prefill_attention",
    "output": "prefill_linear_parts",
    "gated_linear": "prefill_gated_linear",
    "down": "prefill_linear_parts",
    "head": "prefill_linear",
    "join": "prefill_join",
}


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("rows", RANGES)
def test_the_tiles_of_a_range_are_legal(rows: int, target: str) -> None:
    chosen = tiles(rows, target)
    assert chosen.keys() == STEPS.keys()
    for step, tile in chosen.items():
        legal = template(STEPS[step]).axes
        assert [name for name, value in tile.items() if not legal[name].allows(value)] == []


def test_a_length_has_one_choice_of_tiles_whatever_bucket_serves_it() -> None:
    assert [range_of(rows) for rows in (1, 16, 17, 33, 64, 65, 257, 511, 900)] == [
        16,
        16,
        32,
        64,
        64,
        96,
        320,
        512,
        512,
    ]


@pytest.mark.parametrize("head_size", [16, 64, 80, 96, 128])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_heads_that_are_normalised_lie_whole_in_every_tile_that_is_chosen(head_size: int, target: str) -> None:
    dims = {"Q": 8, "G": 2, "D": head_size, "C": 600, "H": 512, "N": 12 * head_size, "F": head_size // 2}
    dtypes = DTypes("float16", "float16", "float32", "float16", "float32")
    head = 1 << (head_size - 1).bit_length()
    for end in range_ends(target, 512):
        choice = choose_prefill("attention_inputs", dims, dtypes, {"x", "query_norm"}, target, end, 512, 0)
        template(choice.template).check(choice.axes)
        if choice.template == "prefill_attention_inputs":
            assert int(choice.axes["block_n"]) % head == 0 and int(choice.axes["extra_n"]) % head == 0


@pytest.mark.parametrize("target", ["sm_86", "compute_80"])
@pytest.mark.parametrize("head_size", [128, 256, 512])
def test_attention_over_wide_heads_fits_the_shared_memory_of_every_chip(
    head_size: int, target: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    dims = {"Q": 4, "G": 2, "D": head_size, "C": 1025}
    halves = DTypes("float16", "float16", "float32", "float16", "float32")
    choice = choose_prefill("attention", dims, halves, (), target, 512, 512, 0)
    assert build(choice.template, choice.axes, target).shared_bytes <= 99 << 10
