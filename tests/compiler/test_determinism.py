"""Does the same input give the same bytes, wherever it lies and whoever compiles it?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hjgc.compiler import compile_model
from hjgc.plan_format import load
from tests.compiler.exports import SMALL, VARIANTS, compiled, copy_of, exported
from tests.models.checkpoints import write_checkpoint

ROOT = Path(__file__).parents[2]
COMPILE = f"import sys; from hjgc.compiler import compile_model; compile_model(sys.argv[1], sys.argv[2], **{SMALL!r})"


@cache
def first(variant: str) -> bytes:
    with TemporaryDirectory() as folder:
        return compiled(copy_of(variant, Path(folder) / "model")).path.read_bytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_compiles_give_the_same_bytes_also_from_another_folder(variant: str, tmp_path: Path) -> None:
    model = copy_of(variant, tmp_path / "a folder" / "deeper")
    assert compiled(model).path.read_bytes() == first(variant)
    assert compiled(model).path.read_bytes() == first(variant)


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_other_processes_with_other_hash_seeds_give_the_same_bytes(seed: str, tmp_path: Path) -> None:
    model = copy_of("qknorm", tmp_path)
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", COMPILE, "model.onnx", "plan.hjg"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)  # paths relative, as one types them
    assert model.with_name("plan.hjg").read_bytes() == first("qknorm")


@pytest.mark.parametrize("source", [Path("model.onnx"), Path()])
def test_a_plan_holds_no_path_of_this_machine(source: Path, tmp_path: Path) -> None:
    folder = copy_of("bias", tmp_path / "findable-name").parent
    plan = compile_model(folder / source, folder / "plan.hjg", **SMALL).path
    data = plan.read_bytes()
    for trace in (str(tmp_path), "findable-name/", str(exported("bias")), str(Path.home()) + "/"):
        assert trace.encode() not in data
    file = load(plan)
    assert [entry.name for entry in file.plan.files] == ["model.safetensors"]


def test_a_folder_compiled_twice_and_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    plans: list[bytes] = []
    for place in ("one", "two"):
        folder = write_checkpoint(tmp_path / place / "model", variant="tied", num_hidden_layers=1)
        for _ in range(2):
            plans.append(compile_model(folder, folder / "plan.hjg", **SMALL).path.read_bytes())
    assert plans == [plans[0]] * 4


CHANGES: dict[str, Callable[[Path], object]] = {
    "the weights": lambda model: overwrite(model.with_name("model.safetensors")),
    "the graph": lambda model: overwrite(model, b"inverse_frequencies", b"inverse_frequenciez"),
}


def overwrite(path: Path, old: bytes | None = None, new: bytes = b"") -> None:
    """Change the last byte, or every `old` to `new`, in a file that is a copy of its own."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if old is None else data.replace(old, new))


@pytest.mark.parametrize("what", CHANGES)
def test_another_input_gives_other_bytes(what: str, tmp_path: Path) -> None:
    model = copy_of("gqa", tmp_path)
    CHANGES[what](model)
    assert compiled(model).path.read_bytes() != first("gqa")


def test_dumping_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HJGC_DUMP", str(tmp_path / "dump"))
    assert compiled(copy_of("gqa", tmp_path / "model")).path.read_bytes() == first("gqa")
    shutil.rmtree(tmp_path / "dump")
