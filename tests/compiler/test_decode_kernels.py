"""Do the templates for one row mean what their ops mean (in Triton's interpreter), build for every chip, and get tiles
that fit?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from hjgc.compiler.build import build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.tiles import DECODE_TEMPLATES, MEASURED, choose_decode, scratch
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import DTypes

ROOT = Path(__file__).parent.parent.parent
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
Dims = dict[str, int]


def dims_of(op: str, *, hidden: int, inner: int, heads: int, kv_heads: int, size: int, vocabulary: int) -> Dims:
    """The letters of an op in a network of these sizes, for one row."""
    attention = {"Q": heads, "G": kv_heads, "D": size, "C": 2049, "A": heads * size, "H": hidden, "F": size // 2}
    match op:
        case "attention" | "attention_inputs" | "rotary_table":
            return {"M": 1, "N": (heads + 2 * kv_heads) * size, **attention}
        case "linear":
            return {"M": 1, "N": hidden, "K": inner}
        case "gated_linear":
            return {"M": 1, "N": 2 * inner, "F": inner, "H": hidden}
        case _:
            return {"M": 1, "V": vocabulary, "H": hidden, "C": 2050}


LLAMA_7B = {"hidden": 4096, "inner": 11008, "heads": 32, "kv_heads": 32, "size": 128, "vocabulary": 32000}
NETWORKS = {
    "7B": LLAMA_7B,
    "1.1B": {"hidden": 2048, "inner": 5632, "heads": 32, "kv_heads": 4, "size": 64, "vocabulary": 32000},
    "size 80": {"hidden": 2560, "inner": 6912, "heads": 32, "kv_heads": 32, "size": 80, "vocabulary": 50304},
    "size 96": {"hidden": 3072, "inner": 8192, "heads": 32, "kv_heads": 8, "size": 96, "vocabulary": 32064},
    "awkward": {"hidden": 1004, "inner": 1111, "heads": 7, "kv_heads": 1, "size": 64, "vocabulary": 3001},
}
HALF = DTypes("float16", "float16", "float32", "float16", "float32")
BRAIN = DTypes("bfloat16", "bfloat16", "float32", "bfloat16", "float32")
OPTIONAL = ("bias", "residual", "query_norm", "key_norm")


def roles_of(op: str, *, optional: bool) -> set[str]:
    return {role.name for role in all_ops()[op].roles if optional or role.name not in OPTIONAL}


def test_every_kernel_means_its_op_in_the_interpreter() -> None:
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = ROOT / "tests" / "interpret_decode.py"
    run = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) >= 25


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", DECODE_TEMPLATES)
def test_a_template_builds_for_every_chip(
    op: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path))
    network, dtypes = (LLAMA_7B, HALF) if target == "sm_90" else (NETWORKS["1.1B"], BRAIN)
    name, axes = choose_decode(op, dims_of(op, **network), dtypes, roles_of(op, optional=False), target)
    built = build(name, axes, target)
    assert built.cubin[:4] == b"\x7fELF"
    assert built.pdl == (int(target.removeprefix("sm_")) >= 90)
    assert built.shared_bytes <= 48 << 10
    # 255 is where registers end and slow memory begins.
    assert built.registers is not None
    assert built.registers < 255


@pytest.mark.parametrize("op", ["attention_inputs", "linear", "gated_linear", "vocabulary_logits"])
def test_operands_that_are_absent_are_no_parameters(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path))
    dims = dims_of(op, **NETWORKS["awkward"])
    found: list[int] = []
    for optional in (False, True):
        name, axes = choose_decode(op, dims, HALF, roles_of(op, optional=optional), "sm_90")
        built = build(name, axes, "sm_90")
        assert [*(p.kind(axes) for p in template(name).present(axes)), "scratch", "scratch"] == list(built.parameters)
        found.append(len(built.parameters))
    assert found[0] < found[1]


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("op", DECODE_TEMPLATES)
def test_every_shape_gets_axes_that_its_template_allows_and_a_grid_that_covers_it(
    op: str, network: str, optional: bool, target: str
) -> None:
    dims = dims_of(op, **NETWORKS[network])
    name, axes = choose_decode(op, dims, BRAIN, roles_of(op, optional=optional), target)
    declared = template(name)
    assert declared.op == op
    declared.check(axes)
    assert axes["pdl"] is (target == "sm_90")
    x, y, z = declared.grid(dims, axes)
    assert 1 <= x <= 65535 * 1024  # type: ignore[operator]
    assert 1 <= y <= 65535  # type: ignore[operator]
    assert z == 1
    if "rows" in axes and op != "attention_inputs":
        assert (x - 1) * axes["rows"] < axes["outputs"] <= x * axes["rows"]  # type: ignore[operator]


def test_what_was_measured_is_what_is_chosen() -> None:
    for (target, name, outputs, columns), tile in MEASURED.items():
        op = template(name).op
        network = LLAMA_7B if {outputs, columns} & {4096} else NETWORKS["1.1B"]
        dims = dims_of(op, **network)
        if op == "linear":
            dims |= {"N": outputs, "K": columns}
        chosen, axes = choose_decode(op, dims, HALF, roles_of(op, optional=False), target)
        assert chosen == name
        assert tile.items() <= axes.items()


def test_scratch_is_as_large_as_the_shares_of_all_heads() -> None:
    dims = dims_of("attention", **NETWORKS["1.1B"])
    _, axes = choose_decode("attention", dims, HALF, roles_of("attention", optional=False), "sm_90")
    assert scratch("attention", axes) == {
        "partials": ("float32", (32 * axes["shares"] * 66,)),  # type: ignore[operator]
        "counters": ("int32", (4,)),
    }
    assert scratch("linear", {}) == {}
