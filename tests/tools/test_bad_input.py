"""Is every bad input one line that says what, where, expected, found and what to do, with nothing left behind?"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hjgc.tools import cli
from tests.tools.command_line import CommandLine

Arguments = list[str | Path]


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A model that a test may spoil."""
    return shutil.copytree(model.parent, tmp_path / "own") / "model.onnx"


def missing_model(model: Path) -> Arguments:
    return ["compile", model.with_name("none.onnx"), "-o", "p.hjg"]


def not_onnx(model: Path) -> Arguments:
    model.write_text("hello")
    return ["compile", model, "-o", "p.hjg"]


def truncated_onnx(model: Path) -> Arguments:
    model.write_bytes(model.read_bytes()[:-1000])
    return ["compile", model, "-o", "p.hjg"]


def empty_onnx(model: Path) -> Arguments:
    model.write_bytes(b"")
    return ["compile", model, "-o", "p.hjg"]


def weights_missing(model: Path) -> Arguments:
    (model.parent / "model.safetensors").unlink()
    return ["compile", model, "-o", "p.hjg"]


def weights_short(model: Path) -> Arguments:
    weights = model.parent / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return ["compile", model, "-o", "p.hjg"]


def unknown_target(model: Path) -> Arguments:
    return ["compile", model, "-o", "p.hjg", "--target", "tpu"]


def prompt_beyond_context(model: Path) -> Arguments:
    return ["compile", model, "-o", "p.hjg", "--prompt", "1:512", "--context", "100"]


def prompt_backwards(model: Path) -> Arguments:
    return ["compile", model, "-o", "p.hjg", "--prompt", "9:3"]


def output_folder_missing(model: Path) -> Arguments:
    return ["compile", model, "-o", "nowhere/p.hjg"]


def output_is_a_folder(model: Path) -> Arguments:
    return ["compile", model, "-o", model.parent]


def output_is_the_model(model: Path) -> Arguments:
    return ["compile", model, "-o", model]


def output_is_the_weights(model: Path) -> Arguments:
    return ["export", model.parent, "-o", model.parent / "model.safetensors"]


def a_plan_for_a_model(model: Path) -> Arguments:
    model.write_bytes(b"HJGCPLAN" + bytes(100))
    return ["compile", model, "-o", "p.hjg"]


def no_folder_to_export(model: Path) -> Arguments:
    return ["export", model.parent / "none", "-o", "m.onnx"]


def no_checkpoint_in_the_folder(model: Path) -> Arguments:
    (model.parent / "config.json").unlink()
    return ["export", model.parent, "-o", "m.onnx"]


def export_of_short_weights(model: Path) -> Arguments:
    weights_short(model)
    return ["export", model.parent, "-o", model.with_name("other.onnx")]


def missing_plan(model: Path) -> Arguments:
    return ["inspect", model.with_name("none.hjg")]


def a_model_for_a_plan(model: Path) -> Arguments:
    return ["inspect", model]


def a_folder_for_a_plan(model: Path) -> Arguments:
    return ["inspect", model.parent]


CASES: list[tuple[Callable[[Path], Arguments], str]] = [
    (missing_model, "none.onnx: expected an ONNX file or a model folder, found nothing there"),
    (not_onnx, "model.onnx: expected an ONNX model"),
    (truncated_onnx, "model.onnx: expected an ONNX model"),
    (empty_onnx, "model.onnx: expected an ONNX model, found an empty file"),
    (weights_missing, "expected its data in model.safetensors, found no such file"),
    (weights_short, "model.safetensors"),
    (unknown_target, "--target: expected cpu or sm_NN, found 'tpu'"),
    (prompt_beyond_context, "--prompt: expected at most the context of 100, found 512"),
    (prompt_backwards, "--prompt: expected LOW:HIGH with 1 <= LOW <= HIGH, found 9:3"),
    (output_folder_missing, "nowhere/p.hjg: expected a folder to write into, found none at nowhere; make it: mkdir -p"),
    (output_is_a_folder, "expected a file to write, found a folder; name a file in it: -o"),
    (output_is_the_model, "model.onnx: expected a new file, found one of the model's own"),
    (output_is_the_weights, "model.safetensors: expected a new file, found one of the model's own"),
    (a_plan_for_a_model, "model.onnx: expected an ONNX model, found a plan; see `hjgc inspect`"),
    (no_folder_to_export, "none"),
    (no_checkpoint_in_the_folder, "config.json"),
    (export_of_short_weights, "model.safetensors"),
    (missing_plan, "none.hjg: expected a plan file, found nothing there; see `hjgc compile`"),
    (a_model_for_a_plan, "is this an ONNX file? try `hjgc compile`"),
    (a_folder_for_a_plan, "cannot be read"),
]


@pytest.mark.parametrize(("spoil", "says"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_bad_input_is_one_line(
    spoil: Callable[[Path], Arguments],
    says: str,
    hjgc: CommandLine,
    own_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = spoil(own_model)
    before = contents(tmp_path)
    ran = hjgc(*arguments)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert says in ran.error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("source", ["model", "weights"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    source: str, hjgc: CommandLine, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs tests as root may write anywhere, so the answer of the system is put in.
    monkeypatch.setattr("os.access", lambda *_: False)
    command = ["compile", own_model] if source == "model" else ["export", own_model.parent]
    ran = hjgc(*command, "-o", tmp_path / "out")
    assert ran.code == 2
    assert f"expected a folder that may be written to, found {tmp_path} read-only" in ran.error
    assert len(ran.err.splitlines()) == 1  # no stage began


@pytest.mark.parametrize("fault", ["full", "interrupted"])
def test_a_plan_that_cannot_be_finished_leaves_nothing_behind(
    fault: str, hjgc: CommandLine, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)
    write_bytes = Path.write_bytes

    def write_half(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device") if fault == "full" else KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", write_half)
    ran = hjgc("compile", own_model, "-o", tmp_path / "p.hjg")
    monkeypatch.undo()
    assert ran.code == (2 if fault == "full" else 130)
    last = ran.err.splitlines()[-1]
    assert ("No space left on device" in last) if fault == "full" else (last == "interrupted")
    assert contents(tmp_path) == before


def test_an_older_plan_survives_a_compilation_that_fails(hjgc: CommandLine, own_model: Path, tmp_path: Path) -> None:
    older = tmp_path / "p.hjg"
    older.write_bytes(b"older")
    own_model.write_text("hello")
    assert hjgc("compile", own_model, "-o", older).code == 2
    assert older.read_bytes() == b"older"


def test_an_unexpected_error_from_a_library_names_no_file_half_written(
    hjgc: CommandLine, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("unexpected")

    before = contents(tmp_path)
    monkeypatch.setattr("hjgc.compiler.pipeline.emit", fail)
    ran = hjgc("compile", own_model, "-o", tmp_path / "p.hjg")
    assert ran.code == cli.BUG
    assert "a bug in hjgc: AssertionError: unexpected at test_bad_input.py" not in ran.error
    assert "a bug in hjgc: AssertionError: unexpected at pipeline.py" in ran.error
    assert contents(tmp_path) == before
