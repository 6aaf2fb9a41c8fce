"""Are the templates for Hopper built without a GPU, into the same bytes every time, and nothing that could not run?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc")

from hjgc.compiler.build import build
from hjgc.compiler.kernels import FOLDER, is_cuda, template, template_digest, template_names
from hjgc.compiler.kernels.declaration import AxisValue, blocks
from hjgc.plan_format import CompileError
from hjgc.plan_format.structs import Operand, TensorMapArgument

Axes = dict[str, AxisValue]
TILE: Axes = {
    "dtype": "float16", "row_capacity": 64, "tokens": 40, "block_n": 40, "warpgroups": 2, "slabs": 1, "stages": 3,
    "share": "none", "blocks": 132, "resident": 1, "lead": 0, "pdl": True,
}  # fmt: skip
PARTS: Axes = TILE | {"rows": 200, "columns": 328, "splits": 2}
GATED: Axes = TILE | {"rows": 1376, "columns": 256, "bias": False}
HEADS: Axes = {"heads": 4, "kv_heads": 2, "head_size": 96, "capacity": 100, "bias": True, "head_norm": False}
INPUTS: Axes = TILE | {"rows": 768, "columns": 256} | HEADS
CASES = {"hopper_linear_parts": PARTS, "hopper_gated_linear": GATED, "hopper_attention_inputs": INPUTS}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "cache"))


def test_every_template_of_cuda_text_is_known_as_one() -> None:
    assert [name for name in template_names() if is_cuda(name)] == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_builds_with_the_parameters_that_it_declares(name: str) -> None:
    built = build(name, CASES[name], "sm_90")
    declared = template(name)
    assert built.cubin[:4] == b"\x7fELF"
    assert built.parameters == tuple(p.kind(CASES[name]) for p in declared.present(CASES[name]))
    assert built.parameters[:2] == ("tensor_map", "tensor_map")
    assert (built.entry, built.threads, built.pdl) == (name, 288, True)
    assert 0 < built.shared_bytes <= 227 << 10
    assert built.registers is not None
    assert built.registers <= 168


@pytest.mark.parametrize("name", CASES)
def test_the_same_text_gives_the_same_bytes_and_no_path_is_in_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(name, CASES[name], "sm_90")
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    assert build(name, CASES[name], "sm_90") == first
    for trace in (str(tmp_path), "/tmp", ".py", "hjgc"):
        assert trace.encode() not in first.cubin


@pytest.mark.parametrize(
    "more", [{"dtype": "bfloat16"}, {"share": "x"}, {"slabs": 2}, {"pdl": False}, {"stages": 4}, {"block_n": 24}]
)
def test_other_axes_give_other_code(more: Axes) -> None:
    axes = PARTS | more
    assert build("hopper_linear_parts", axes, "sm_90").cubin != build("hopper_linear_parts", PARTS, "sm_90").cubin


def test_sums_that_need_more_registers_take_those_of_the_warps_that_copy() -> None:
    wide = GATED | {"slabs": 2, "block_n": 176, "tokens": 64, "rows": 22016, "columns": 4096}
    assert build("hopper_gated_linear", wide, "sm_90").threads == 384


def test_the_digest_counts_the_loop_that_all_share(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "kernels"))
    before = {template_digest(name, folder) for name in CASES}
    with (folder / "hopper_product.py").open("a") as file:
        file.write("\n")
    assert len(before | {template_digest(name, folder) for name in CASES}) == 2 * len(CASES)


@pytest.mark.parametrize(
    ("name", "more", "complaint"),
    [
        ("hopper_linear_parts", {"block_n": 36}, r"axis block_n: expected one of 8, 16, .*, found 36"),
        ("hopper_linear_parts", {"rows": 204}, r"axes: expected rows and columns that are multiples of 8"),
        ("hopper_linear_parts", {"tokens": 65}, r"axes: expected tokens up to row_capacity 64, found 65"),
        ("hopper_linear_parts", {"share": "weight"}, r"axes: expected an even number of token tiles"),
        ("hopper_linear_parts", {"splits": 5}, r"axes: expected parts of at least 64 columns each, found 5 of 328"),
        ("hopper_linear_parts", {"stages": 16, "slabs": 2}, r"axes: expected at most 232448 bytes of shared memory"),
        ("hopper_linear_parts", {"slabs": 4, "block_n": 104}, r"axes: expected sums that fit the registers"),
        ("hopper_gated_linear", {"rows": 1384}, r"axes: expected outputs in multiples of 8, found 692"),
        ("hopper_attention_inputs", {"rows": 776}, r"axes: expected rows of 8 heads of 96, found 776"),
        ("hopper_attention_inputs", {"head_norm": True}, r"axes: expected tiles of whole heads"),
        ("hopper_attention_inputs", {"head_size": 72}, r"axes: expected a head size that is a multiple of 16"),
    ],
)
def test_axes_that_do_not_go_together_are_refused_in_one_line(name: str, more: Axes, complaint: str) -> None:
    with pytest.raises(CompileError, match=complaint) as caught:
        build(name, CASES[name] | more, "sm_90")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_100", "sm_120"])
def test_it_is_built_for_no_other_chip(target: str) -> None:
    with pytest.raises(CompileError, match=f"expected sm_90.*, found {target}"):
        build("hopper_linear_parts", PARTS | {"pdl": False}, target)


def test_the_compilers_own_words_reach_the_person_who_meets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hjgc.compiler.kernels.hopper_product.BASICS", "this is no C++\n")
    with pytest.raises(CompileError, match=r"hopper_linear_parts for sm_90: nvrtc refused it: .*error"):
        build("hopper_linear_parts", PARTS, "sm_90")


def test_a_launch_passes_tensor_maps_of_its_operands() -> None:
    roles = ("x", "weight", "parts")
    operands = tuple(Operand(role, "buffer", i, "read") for i, role in enumerate(roles))
    call = template("hopper_linear_parts").call(7, PARTS, operands, {"M": 40})
    assert call.variant == 7
    assert call.grid == (4, 1, 1)
    assert call.arguments[0] == TensorMapArgument(0, (328, 64), (656,), (64, 40), 128)
    assert call.arguments[1] == TensorMapArgument(1, (328, 200), (656,), (64, 128), 128)


def test_paired_rows_lie_eight_by_eight_in_the_map_of_their_weight() -> None:
    """A box of 128 rows of heads of 96: 2 octets of each half at a time, since 8 octets would straddle heads."""
    weight = template("hopper_attention_inputs").parameters[1]
    assert weight.map is not None
    made = weight.map(INPUTS)
    assert made.sizes == (256, 8, 2, 6, 8)
    assert made.strides == (512, 48 * 512, 8 * 512, 96 * 512)
    assert made.box == (64, 8, 2, 2, 1)


def test_the_grid_is_the_same_for_every_length() -> None:
    grid = template("hopper_gated_linear").grid
    assert grid({"M": 1}, GATED) == grid({"M": 64}, GATED) == (blocks(1376, 128), 1, 1)
