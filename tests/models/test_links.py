"""Does an export put weights where ONNX Runtime takes them, and leave nothing behind when it fails?"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import onnx_ir as ir
import pytest
from numpy.testing import assert_allclose

from hjgc.models import export, links, tidy, trace
from hjgc.models.export import export_model
from hjgc.models.links import Link
from hjgc.plan_format.errors import HjgcError, InputError
from tests.models.checkpoints import write_checkpoint
from tests.models.running import onnx_logits, some_tokens, transformers_logits
from tests.models.tracing import trace_once

SINGLE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere" / "model.onnx"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A model in the layout of Hugging Face's download cache: a snapshot of links to blobs; two shards."""
    snapshot = write_checkpoint(tmp_path / "cache" / "snapshots" / "0a1b", num_hidden_layers=1, sharded=True)
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir()
    for index, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"blob{index}")
        file.symlink_to(Path("..") / ".." / "blobs" / f"blob{index}")
    return snapshot


@pytest.fixture(autouse=True)
def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "trace", trace_once)


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """For errors that must come before the slow part."""

    def too_far() -> NoReturn:
        raise AssertionError("the trace was reached")

    monkeypatch.setattr(export, "_tracer", too_far)


def refusal(folder: Path, output: Path, link: Link | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        export_model(folder, output, link=link)
    assert "\n" not in str(caught.value)
    return caught.value


def check_it_runs(folder: Path, output: Path) -> None:
    tokens = some_tokens(12)
    assert_allclose(onnx_logits(output, tokens, [10, 1, 1]), transformers_logits(folder, tokens), rtol=0, atol=1e-4)


def locations(output: Path) -> set[str]:
    tensors = [value.const_value for value in ir.load(output).graph.initializers.values()]
    return {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.usefixtures("untraced")
def test_weights_outside_the_folder_of_the_onnx_file_are_refused_with_both_ways_out(folder: Path, output: Path) -> None:
    error = refusal(folder, output)
    assert error.place == str(folder / SINGLE)
    for way_out in ("--link hard", "--link copy", str(folder)):
        assert way_out in str(error.next_step)
    assert tree(output.parent) == set()


@pytest.mark.usefixtures("untraced")
def test_links_that_leave_the_folder_are_refused_as_onnx_runtime_would(cache: Path) -> None:
    before = tree(cache)
    error = refusal(cache, cache / "model.onnx")
    assert "blobs/blob" in error.problem
    assert "--link hard" in str(error.next_step)
    assert tree(cache) == before


def test_links_that_stay_inside_the_folder_are_followed(cache: Path) -> None:
    output = cache.parents[1] / "model.onnx"  # blobs/ and snapshots/ lie beside it
    export_model(cache, output)
    assert locations(output) <= {f"blobs/blob{n}" for n in range(6)}
    check_it_runs(cache, output)


def test_weights_in_a_folder_below_the_onnx_file_stay_where_they_are(folder: Path) -> None:
    output = folder.parent / "model.onnx"
    result = export_model(folder, output)
    assert locations(output) == {"checkpoint/model.safetensors"}
    assert result.weights == (folder / SINGLE,)
    assert ir.load(output).metadata_props["hjgc.folder"] == "checkpoint"
    check_it_runs(folder, output)


def test_the_output_folder_may_itself_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    export_model(folder, tmp_path / "alias" / "model.onnx")
    check_it_runs(folder, tmp_path / "alias" / "model.onnx")


def test_hard_links_take_no_disk_and_run(cache: Path, output: Path) -> None:
    result = export_model(cache, output, link="hard")
    placed = sorted(output.with_name("model.weights").glob("*.safetensors"))
    assert sorted(result.weights) == placed
    assert [path.name for path in placed] == sorted(path.name for path in cache.glob("*.safetensors"))
    assert all(path.samefile(cache / path.name) and not path.is_symlink() for path in placed)
    assert locations(output) == {f"model.weights/{path.name}" for path in placed}
    check_it_runs(cache, output)


def test_copies_are_files_of_their_own_and_run(cache: Path, output: Path) -> None:
    export_model(cache, output, link="copy")
    placed = sorted(output.with_name("model.weights").iterdir())
    assert [path.suffix for path in placed] == [".json", *[".safetensors"] * 3]
    assert not any(path.samefile(cache / path.name) or path.is_symlink() for path in placed)
    tokens = some_tokens(12)
    expected = transformers_logits(cache, tokens)
    shutil.rmtree(cache.parents[1])
    assert_allclose(onnx_logits(output, tokens, [12]), expected, rtol=0, atol=1e-4)


def test_a_hard_link_leaves_the_mode_of_the_file_as_it_was(folder: Path, output: Path) -> None:
    (folder / SINGLE).chmod(0o440)
    export_model(folder, output, link="hard")
    assert (folder / SINGLE).stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("first", ["hard", "copy"])
@pytest.mark.parametrize("second", ["hard", "copy"])
def test_an_export_may_be_repeated_with_either_kind_of_link(
    folder: Path, output: Path, first: Link, second: Link
) -> None:
    content = (folder / SINGLE).read_bytes()
    export_model(folder, output, link=first)
    before = output.read_bytes()
    export_model(folder, output, link=second)
    assert output.read_bytes() == before
    assert tree(output.parent) == {
        "model.onnx",
        "model.weights",
        "model.weights/config.json",
        f"model.weights/{SINGLE}",
    }
    placed = output.with_name("model.weights") / SINGLE
    assert placed.samefile(folder / SINGLE) == (second == "hard")
    assert placed.read_bytes() == (folder / SINGLE).read_bytes() == content


@pytest.mark.parametrize("link", ["hard", "copy"])
def test_the_tokenizer_and_the_config_go_where_the_weights_go_and_the_model_says_so(
    cache: Path, output: Path, link: Link
) -> None:
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    for name in names[1:]:
        (cache / name).write_text(f'"{name}"')
    (cache / "README.md").write_text("not needed")
    export_model(cache, output, link=link)
    placed = output.with_name("model.weights")
    assert {path.name for path in placed.iterdir() if path.suffix != ".safetensors"} == set(names)
    for name in names:
        assert (placed / name).read_bytes() == (cache / name).read_bytes()
        assert (placed / name).samefile(cache / name) == (link == "hard")
        assert not (placed / name).is_symlink()
    assert ir.load(output).metadata_props["hjgc.folder"] == "model.weights"


def test_a_model_in_memory_names_the_links_of_a_cache_and_not_what_they_lead_to(cache: Path) -> None:
    model = export.build_model(cache)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    named = {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    assert named == {path.name for path in cache.glob("*.safetensors")}
    assert model.metadata_props["hjgc.folder"] == "."


def test_a_model_in_memory_is_what_an_export_into_its_folder_writes(folder: Path) -> None:
    export_model(folder, folder / "model.onnx")
    written, built = ir.load(folder / "model.onnx"), export.build_model(folder)
    assert ir.to_proto(built).SerializeToString(deterministic=True) == ir.to_proto(written).SerializeToString(
        deterministic=True
    )


def failing_link(code: int) -> Callable[..., NoReturn]:
    def link(*_: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return link


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EXDEV, "expected a folder on the same disk"),
        (errno.EPERM, "expected a disk that can hard-link"),
        (errno.EMLINK, "expected a disk that can hard-link"),
    ],
)
def test_where_hard_links_cannot_be_made_a_copy_is_offered(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr(links.os, "link", failing_link(code))
    error = refusal(folder, output, "hard")
    assert words in error.problem
    assert str(folder / SINGLE) in error.problem
    assert error.next_step == "use `--link copy`"
    assert tree(output.parent) == set()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("link", ["hard", "copy"])
def test_a_full_disk_leaves_nothing(cache: Path, output: Path, monkeypatch: pytest.MonkeyPatch, link: Link) -> None:
    """The second shard does not fit."""
    real = {"hard": os.link, "copy": shutil.copyfile}[link]
    calls: list[Path] = []

    def full(source: Path, target: Path) -> None:
        calls.append(source)
        real(source, target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"hard": (links.os, "link"), "copy": (links.shutil, "copyfile")}[link], full)
    assert "No space left on device" in refusal(cache, output, link).problem
    assert len(calls) == 2
    assert tree(output.parent) == set()


STAGES: dict[str, Callable[[pytest.MonkeyPatch, Callable[..., Any]], None]] = {
    "trace": lambda patch, stop: patch.setattr(trace, "trace", stop),
    "tidy": lambda patch, stop: patch.setattr(tidy, "_merge_constants", stop),
    "attach": lambda patch, stop: patch.setattr(export, "attach_weights", stop),
    "write": lambda patch, stop: patch.setattr(export.ir, "save", stop),
    "replace": lambda patch, stop: patch.setattr(os, "replace", stop),
}


@pytest.mark.parametrize("link", [None, "hard", "copy"])
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_at_any_stage_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, link: Link | None
) -> None:
    def stop(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = tree(tmp_path)
    STAGES[stage](monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        export_model(folder, tmp_path / "model.onnx", link=link)
    assert tree(tmp_path) == before


def test_a_failed_export_keeps_the_earlier_one(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(folder, output, link="hard")
    before = {name: (output.parent / name).stat().st_ino for name in tree(output.parent)}

    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export.ir, "save", full)
    error = refusal(folder, output, "hard")
    assert (error.place, error.problem) == (str(output), "cannot be written: No space left on device")
    assert {name: (output.parent / name).stat().st_ino for name in tree(output.parent)} == before


def test_what_else_lies_in_the_weights_folder_is_left_alone(folder: Path, output: Path) -> None:
    other = output.with_name("model.weights") / "other"
    other.parent.mkdir()
    other.write_text("mine")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        STAGES["write"](patch, interrupted)
        export_model(folder, output, link="hard")
    assert tree(output.parent) == {"model.weights", "model.weights/other"}


def interrupted(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", "ends in .onnx"),
        ("model", "ends in .onnx"),
        ("no/such/model.onnx", "No such file or directory"),
        ("folder.onnx", "expected a file to write, found a folder"),
        ("config.json/model.onnx", "Not a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_traced(
    folder: Path, name: str, words: str
) -> None:
    (folder / "folder.onnx").mkdir()
    before = tree(folder)
    error = refusal(folder, folder / name)
    assert error.place == str(folder / name)
    assert words in error.problem
    assert tree(folder) == before


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("link", ["hard", "copy"])
def test_a_weights_folder_that_is_a_file_or_leads_elsewhere_is_refused(folder: Path, output: Path, link: Link) -> None:
    weights = output.with_name("model.weights")
    weights.write_text("a file")
    assert refusal(folder, output, link).place == str(weights)
    assert weights.read_text() == "a file"
    weights.unlink()
    weights.symlink_to(folder)
    assert refusal(folder, output, link).place == str(weights)
    assert tree(output.parent) == {"model.weights"}
    assert weights.is_symlink()


@pytest.mark.usefixtures("untraced")
def test_a_checkpoint_that_cannot_be_read_is_refused_before_anything_is_placed(folder: Path, output: Path) -> None:
    os.truncate(folder / SINGLE, 100)
    assert refusal(folder, output, "copy").place == str(folder / SINGLE)
    assert tree(output.parent) == set()


def test_without_torch_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("hjgc.models.trace")
    monkeypatch.setitem(sys.modules, "hjgc.models.trace", None)
    with pytest.raises(HjgcError, match=r"pip install 'hjgc\[export\]'"):
        export_model(folder, folder / "model.onnx")
    assert not (folder / "model.onnx").exists()
