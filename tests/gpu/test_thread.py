"""Does a kernel that was built without a GPU run from a plan, plainly and from a graph, and mean what its op means?

The plan is written by one process that sees no GPU and served by another that loads neither torch nor triton. Set
HJGC_TEST_PLANS to a folder that holds `chain.hjg` and `weights.bin` to serve a plan built on another machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hjgc.plan_format import Plan, load, save

HERE = Path(__file__).parent
COUNTS = (1, 7, 64)
EPSILON = 1e-5


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds hjgc as this one does."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("HJGC_TEST_PLANS")
    if given:
        return Path(given) / "chain.hjg"
    folder = tmp_path_factory.mktemp("plan")
    built = python(HERE / "rms_plan.py", folder, CUDA_VISIBLE_DEVICES="", HJGC_CACHE_DIR=str(folder / "cache"))
    assert built.returncode == 0, built.stderr
    return folder / "chain.hjg"


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((64, 4096)).astype(np.float16)


@pytest.fixture(scope="module")
def served(plan: Path, x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("served")
    np.savez(folder / "in.npz", x=x)
    run = python(HERE / "run_chain.py", plan, folder / "in.npz", folder / "out.npz")
    assert run.returncode == 0, run.stderr
    return dict(np.load(folder / "out.npz"))


def reference(plan: Path, x: np.ndarray) -> np.ndarray:
    """The chain in float64, rounded to float16 after each norm, as the buffers between them are."""
    weights = np.fromfile(plan.parent / "weights.bin", np.float16).reshape(-1, x.shape[1]).astype(np.float64)
    for weight in weights:
        wide = x.astype(np.float64)
        x = (wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + EPSILON) * weight).astype(np.float16)
    return x


def test_serving_loads_neither_torch_nor_triton_nor_the_compiler(served: dict[str, np.ndarray]) -> None:
    modules = set(served["modules"].tolist())
    assert "cuda.bindings.driver" in modules
    assert modules & {"torch", "triton", "onnx", "transformers", "hjgc.compiler", "hjgc.models"} == set()


@pytest.mark.parametrize("rows", COUNTS)
@pytest.mark.parametrize("path", ["plain", "graph"])
def test_the_chain_means_what_its_ops_mean(
    path: str, rows: int, served: dict[str, np.ndarray], plan: Path, x: np.ndarray
) -> None:
    found = served[f"{path}{rows}"][:rows].astype(np.float64)
    expected = reference(plan, x)[:rows].astype(np.float64)
    # Three roundings to 11 bits, each one unit in the last place apart at most from the reference's.
    assert np.all(np.abs(found - expected) <= 3 * 2**-10 * np.abs(expected) + 2**-14)


@pytest.mark.parametrize("rows", COUNTS)
def test_the_graph_for_64_rows_gives_the_bits_of_the_plain_run(rows: int, served: dict[str, np.ndarray]) -> None:
    assert served[f"graph{rows}"].tobytes() == served[f"plain{rows}"].tobytes()


@pytest.mark.parametrize("rows", [1, 7])
def test_rows_past_the_true_length_are_left_alone(rows: int, served: dict[str, np.ndarray]) -> None:
    assert np.isfinite(served[f"graph{rows}"][:rows]).all()
    assert np.isnan(served[f"graph{rows}"][rows:]).all()


def with_code(plan: Path, folder: Path, code: bytes, **changes: Any) -> Path:
    """The plan with other device code, as a forger would write it: every digest fits, but those in `changes`."""
    shutil.copy(plan.parent / "weights.bin", folder)
    with load(plan) as file:
        old: Plan = file.plan
    reference = {"offset": 0, "length": len(code), "sha256": hashlib.sha256(code).hexdigest(), **changes}
    built = old.variants[0].built
    assert built is not None
    changed = msgspec.structs.replace(built, code=msgspec.structs.replace(built.code, **reference))
    other = msgspec.structs.replace(old.variants[0], built=changed)
    path = folder / "other.hjg"
    save(path, msgspec.structs.replace(old, variants=(other,)), sections={"cubin": code})
    return path


def code_of(plan: Path) -> bytes:
    with load(plan) as file:
        return file.section("cubin")


def refusal(plan: Path, folder: Path) -> str:
    """The one line with which serving it ends."""
    np.savez(folder / "in.npz", x=np.zeros((64, 4096), np.float16))
    run = python(HERE / "run_chain.py", plan, folder / "in.npz", folder / "out.npz")
    assert run.returncode == 1
    assert not (folder / "out.npz").exists()
    (line,) = run.stderr.splitlines()
    return line


def test_code_that_is_not_what_the_plan_says_is_refused(plan: Path, tmp_path: Path) -> None:
    code = bytearray(code_of(plan))
    code[len(code) // 2] ^= 1
    line = refusal(with_code(plan, tmp_path, bytes(code), sha256="0" * 64), tmp_path)
    assert "$.variants[0].built.code.sha256: expected code with the sha256 in the plan, found another" in line


def test_damaged_code_under_a_fitting_digest_is_refused_in_the_drivers_words(plan: Path, tmp_path: Path) -> None:
    line = refusal(with_code(plan, tmp_path, code_of(plan)[:1000]), tmp_path)
    assert "$.variants[0].built.code: expected code for sm_90" in line
    assert "CUDA_ERROR_" in line


def test_code_for_another_chip_under_this_ones_name_is_refused_in_the_drivers_words(plan: Path, tmp_path: Path) -> None:
    foreign = plan.parent / "sm_80.cubin"
    line = refusal(with_code(plan, tmp_path, foreign.read_bytes()), tmp_path)
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in line
    assert "compile the model again for this device" in line


def test_a_plan_for_other_targets_only_is_refused_with_the_option_that_mends_it(plan: Path, tmp_path: Path) -> None:
    shutil.copy(plan.parent / "weights.bin", tmp_path)
    with load(plan) as file:
        old, code = file.plan, file.section("cubin")
    phase = old.phases[0]
    launches = tuple(
        msgspec.structs.replace(launch, kernels={"sm_100": launch.kernels["sm_90"]}) for launch in phase.launches
    )
    other = msgspec.structs.replace(
        old,
        targets=("sm_100",),
        variants=(msgspec.structs.replace(old.variants[0], target="sm_100"),),
        phases=(msgspec.structs.replace(phase, launches=launches),),
    )
    save(tmp_path / "other.hjg", other, sections={"cubin": code})
    line = refusal(tmp_path / "other.hjg", tmp_path)
    assert "expected code for sm_90, this machine's device; found sm_100; compile with --target sm_90" in line
