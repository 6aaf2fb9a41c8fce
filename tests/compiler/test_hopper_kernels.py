"""Are the templates for Hopper built without a GPU, into the same bytes every time, and nothing that could not run?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc")

from hjgc.compiler import build as builder
from hjgc.compiler.build import build
from hjgc.compiler.kernels import FOLDER, is_cuda, template, template_digest, template_names
from hjgc.compiler.kernels.declaration import AxisValue, blocks
from hjgc.compiler.kernels.hopper_tiles import H200, RANGES, choose_hopper, range_of, splits
from hjgc.plan_format import CompileError
from hjgc.plan_format.structs import Operand, TensorMapArgument

Axes = dict[str, AxisValue]
TILE: Axes = {
    "dtype": "float16", "row_capacity": 64, "tokens": 40, "block_n": 40, "warpgroups": 2, "slabs": 1, "height": 0,
    "stages": 3, "share": "none", "blocks": 132, "resident": 1, "lead": 0, "pdl": True,
}  # fmt: skip
PARTS: Axes = TILE | {"rows": 200, "columns": 328, "splits": 2}
GATED: Axes = TILE | {"rows": 1376, "columns": 256, "bias": False}
HEADS: Axes = {
    "heads": 4, "kv_heads": 2, "head_size": 96, "capacity": 100, "ring": False, "bias": True, "head_norm": False,
}  # fmt: skip
INPUTS: Axes = TILE | {"rows": 768, "columns": 256} | HEADS
CASES = {"hopper_linear_parts": PARTS, "hopper_gated_linear": GATED, "hopper_attention_inputs": INPUTS}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "cache"))


def test_every_template_of_cuda_text_is_known_as_one() -> None:
    assert {name for name in template_names() if is_cuda(name)} >= CASES.keys()
    assert not is_cuda("prefill_linear_parts")


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
        ("hopper_linear_parts", {"height": 72}, r"axes: expected a height in multiples of 16 that needs every slab"),
        ("hopper_linear_parts", {"height": 64}, r"axes: expected a height in multiples of 16 that needs every slab"),
        (
            "hopper_linear_parts",
            {"warpgroups": 3, "slabs": 3, "height": 544},
            r"axes: expected a height that 3 boxes of whole octets share, found 544",
        ),
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


MODELS = {
    "7B": {"heads": 32, "kv_heads": 32, "head_size": 128, "hidden": 4096, "inner": 11008},
    "8B": {"heads": 32, "kv_heads": 8, "head_size": 128, "hidden": 4096, "inner": 14336},
    "1B": {"heads": 32, "kv_heads": 4, "head_size": 64, "hidden": 2048, "inner": 5632},
    "of 80 a head": {"heads": 32, "kv_heads": 32, "head_size": 80, "hidden": 2560, "inner": 10240},
    "demo": {"heads": 4, "kv_heads": 2, "head_size": 64, "hidden": 256, "inner": 688},
}


def products(model: dict[str, int]) -> list[tuple[str, dict[str, int], tuple[str, ...]]]:
    """The products of one layer: op, letters, and the roles that matter."""
    heads, kv_heads, size = model["heads"], model["kv_heads"], model["head_size"]
    hidden, inner = model["hidden"], model["inner"]
    inputs = {"Q": heads, "G": kv_heads, "D": size, "C": 600, "N": (heads + 2 * kv_heads) * size, "H": hidden}
    return [
        ("attention_inputs", inputs, ()),
        ("attention_inputs", inputs, ("bias", "query_norm")),
        ("gated_linear", {"N": 2 * inner, "H": hidden}, ()),
        ("linear_parts", {"N": hidden, "K": heads * size}, ()),
        ("linear_parts", {"N": hidden, "K": inner}, ()),
    ]


@pytest.mark.parametrize("capacity", [64, 300, 512, 1024])
@pytest.mark.parametrize("model", MODELS)
def test_every_range_of_every_model_has_legal_tiles(model: str, capacity: int) -> None:
    for rows in (*(top for top in RANGES if top < capacity), capacity):
        for op, dims, roles in products(MODELS[model]):
            found = choose_hopper(op, dims, "bfloat16", roles, rows, capacity)
            if found is None:  # no tile of whole slabs holds whole heads of 80
                assert ("query_norm" in roles, model) == (True, "of 80 a head")
                continue
            template(found[0]).check(found[1])


def test_all_lengths_of_a_range_have_one_choice() -> None:
    dims = {"N": 4096, "K": 4096}
    assert range_of(113) == range_of(128) == 128
    assert choose_hopper("linear_parts", dims, "float16", (), 113, 512) == choose_hopper(
        "linear_parts", dims, "float16", (), 128, 512
    )
    assert splits(113, 4096, 4096, 512) == splits(128, 4096, 4096, 512)


def test_what_was_measured_has_a_choice_for_every_range() -> None:
    assert all(tuple(ranges) == RANGES for ranges in H200.values())


@pytest.mark.parametrize(
    ("op", "dims", "roles"),
    [
        ("join", {"N": 4096}, ()),
        ("gated_linear", {"N": 22016, "H": 4096}, ("norm_weight",)),
        ("linear_parts", {"N": 4096, "K": 4100}, ()),
        ("attention_inputs", {"Q": 2, "G": 2, "D": 24, "C": 9, "N": 144, "H": 64}, ()),
    ],
)
def test_what_it_cannot_do_is_left_to_other_templates(op: str, dims: dict[str, int], roles: tuple[str, ...]) -> None:
    assert choose_hopper(op, dims, "float16", roles, 100, 512) is None


def test_more_rows_than_it_takes_are_left_to_other_templates_with_their_parts() -> None:
    dims = {"N": 4096, "K": 4096}
    assert choose_hopper("linear_parts", dims, "float16", (), 4096, 4096) is not None
    assert choose_hopper("linear_parts", dims, "float16", (), 5000, 5000) is None
    assert splits(5000, 4096, 4096, 5000) is None


def test_code_of_another_release_of_the_compiler_is_not_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    for release in ("13.0.48", "13.0.88"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, release=release: release)
        digests.append(builder._digest("hopper_linear_parts", PARTS, "sm_90"))
    assert digests[0] != digests[1]
