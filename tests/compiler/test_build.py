"""Is a kernel template built for every chip, without a GPU, into the same bytes wherever it is built?"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hjgc.compiler import build as builder
from hjgc.compiler.build import Built, build
from hjgc.compiler.build_worker import BuildWorker
from hjgc.compiler.kernels import template, template_digest, template_names
from hjgc.compiler.kernels.declaration import CudaFunction
from hjgc.plan_format import CompileError
from hjgc.plan_format.ops import all_ops

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent.parent
AXES = {"columns": 4096, "dtype": "float16", "weight_dtype": "float16", "warps": 4, "pdl": False}
BUILD_HERE = "from hjgc.compiler.build import build; build('rms_norm', {axes!r}, 'sm_90')"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the templates that were really compiled, one entry each time."""
    done: list[str] = []
    compile_it = builder._compile

    def counting(name: str, *rest: object) -> Built:
        done.append(name)
        return compile_it(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builder, "_compile", counting)
    yield done


@pytest.mark.parametrize(
    ("target", "pdl"),
    [("sm_80", False), ("sm_86", False), ("sm_89", False), ("sm_90", True), ("sm_100", True), ("sm_120", True)],
)
def test_it_builds_for_every_chip_with_the_parameters_that_it_declares(target: str, pdl: bool) -> None:
    built = build("rms_norm", AXES | {"pdl": pdl}, target)
    assert built.cubin[:4] == b"\x7fELF"
    assert b"rms_norm" in built.cubin
    assert built.parameters == ("pointer", "pointer", "pointer", "pointer", "float32", "scratch", "scratch")
    assert (built.entry, built.threads, built.pdl) == ("rms_norm", 128, pdl)
    assert 0 < built.shared_bytes <= 1024
    assert built.registers is not None
    assert 16 <= built.registers <= 255


@pytest.mark.parametrize("axes", [{"columns": 5}, {"columns": 64, "warps": 1}, {"dtype": "float32", "warps": 8}])
def test_other_axes_give_other_code(axes: dict[str, bool | int | str]) -> None:
    built = build("rms_norm", AXES | axes, "sm_90")
    assert built.threads == 32 * int((AXES | axes)["warps"])
    assert built.cubin != build("rms_norm", AXES, "sm_90").cubin


def copied_hjgc(folder: Path) -> dict[str, str]:
    """A copy of what a build needs in `folder`, and an environment in which it is the one that is imported."""
    for package in ("compiler", "plan_format"):
        shutil.copytree(ROOT / package, folder / "hjgc" / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "hjgc" / "__init__.py").touch()
    shutil.copy(ROOT / "src" / "hjgc" / "_version.py", folder / "hjgc")
    path = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path, "HJGC_CACHE_DIR": str(folder / "cache")}


def test_two_copies_in_two_folders_build_the_same_bytes_and_no_path_is_in_them(tmp_path: Path) -> None:
    found: list[bytes] = []
    for name in ("here", "some/where/else"):
        folder = tmp_path / name
        environment = copied_hjgc(folder)
        program = BUILD_HERE.format(axes=AXES | {"pdl": True})
        run = subprocess.run([sys.executable, "-c", program], env=environment, cwd="/", capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        (entry,) = (folder / "cache" / "kernels").iterdir()
        found.append(entry.read_bytes())
    assert found[0] == found[1]
    for trace in (str(tmp_path), "rms_norm.py", ".py", "/tmp", "hjgc"):
        assert trace.encode() not in found[0]


def test_what_was_built_once_is_taken_from_the_cache(builds: list[str]) -> None:
    first = build("rms_norm", AXES, "sm_90")
    assert build("rms_norm", AXES, "sm_90") == first
    assert builds == ["rms_norm"]


def test_another_target_or_axis_is_another_entry(builds: list[str]) -> None:
    for axes, target in ((AXES, "sm_90"), (AXES, "sm_80"), (AXES | {"warps": 8}, "sm_90")):
        build("rms_norm", axes, target)
    assert len(builds) == 3


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "empty"])
def test_a_damaged_entry_is_built_again_and_mended(damage: str, builds: list[str], tmp_path: Path) -> None:
    first = build("rms_norm", AXES, "sm_90")
    (entry,) = (tmp_path / "cache" / "kernels").iterdir()
    whole = entry.read_bytes()
    changed = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    entry.write_bytes({"cut short": whole[:-1], "one byte changed": changed, "empty": b""}[damage])
    assert build("rms_norm", AXES, "sm_90") == first
    assert len(builds) == 2
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_does_not_stop_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path / "file"))
    assert build("rms_norm", AXES, "sm_90").threads == 128


@pytest.mark.parametrize(
    ("axes", "target", "complaint"),
    [
        ({"pdl": True}, "sm_89", r"axis pdl: expected sm_90 or later, found sm_89"),
        ({"columns": 0}, "sm_90", r"axis columns: expected 1 to 65536, found 0"),
        ({"columns": True}, "sm_90", r"axis columns: expected 1 to 65536, found True"),
        ({"pdl": 1}, "sm_90", r"axis pdl: expected one of False, True, found 1"),
        ({"warps": 3}, "sm_90", r"axis warps: expected one of 1, 2, 4, 8, 16, found 3"),
        ({"dtype": "float64"}, "sm_90", r"axis dtype: expected one of float16, bfloat16, float32, found 'float64'"),
        ({"more": 1}, "sm_90", r"axes: expected .*, found .*'more'"),
        ({}, "sm_42", r"target: expected one of sm_80, .*, found 'sm_42'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(
    axes: dict[str, bool | int | str], target: str, complaint: str
) -> None:
    with pytest.raises(CompileError, match=complaint) as caught:
        build("rms_norm", AXES | axes, target)
    assert "\n" not in str(caught.value)


def test_the_compilers_own_words_reach_the_person_who_meets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("a long story\nptxas fatal: too much shared data")

    monkeypatch.setattr(builder, "_run_triton", refuse)
    with pytest.raises(CompileError, match=r"rms_norm for sm_90: triton refused it: ptxas fatal: too much shared data"):
        build("rms_norm", AXES, "sm_90")


def test_an_unknown_template_is_refused_with_those_there_are() -> None:
    with pytest.raises(CompileError, match=r"template unheard_of: expected one of .*rms_norm"):
        build("unheard_of", {}, "sm_90")


def test_without_triton_the_extra_that_brings_it_is_named(tmp_path: Path) -> None:
    environment = copied_hjgc(tmp_path)
    program = (
        "import importlib.metadata as m, sys; sys.modules['triton'] = None\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n" + BUILD_HERE.format(axes=AXES)
    )
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].endswith(
        "CompileError: template rms_norm: building it needs triton, which is not installed; pip install 'hjgc[aot]'"
    )


def test_listing_templates_and_digests_does_not_import_triton(tmp_path: Path) -> None:
    program = (
        "import sys; from hjgc.compiler.kernels import template_digest, template_names\n"
        "assert [template_digest(name) for name in template_names()]; assert 'triton' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", program], env=copied_hjgc(tmp_path), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def kernels_folder(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT / "compiler" / "kernels", folder / "kernels"))


@pytest.mark.parametrize("file", ["rms_norm.py", "declaration.py"])
def test_the_digest_changes_with_the_text_and_with_that_of_the_helpers(file: str, tmp_path: Path) -> None:
    folder = kernels_folder(tmp_path)
    before = template_digest("rms_norm", folder)
    assert before == template_digest("rms_norm")
    (folder / file).write_text((folder / file).read_text() + "\n")
    assert template_digest("rms_norm", folder) != before


def test_the_digest_does_not_change_with_another_template(tmp_path: Path) -> None:
    folder = kernels_folder(tmp_path)
    before = template_digest("rms_norm", folder)
    (folder / "another.py").write_text("TEMPLATE = 1\n")
    assert template_digest("rms_norm", folder) == before


@pytest.mark.parametrize("name", template_names())
def test_a_template_takes_what_its_op_offers(name: str) -> None:
    declared, op = template(name), all_ops()[template(name).op]
    assert {p.when for p in declared.parameters} - {None} <= declared.axes.keys()
    by_source = {p.name: p.source for p in declared.parameters}
    assert {n for n, source in by_source.items() if source == "attribute"} <= op.attributes.keys()
    assert [n for n, source in by_source.items() if source == "operand" and op.role(n) is None] == []
    assert "warps" in declared.axes or isinstance(declared.function, CudaFunction)


def test_the_process_that_builds_imports_nothing_from_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "msgspec.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with BuildWorker() as worker, pytest.raises(CompileError, match="unheard_of"):
        worker.build("unheard_of", {}, "sm_90")
    assert not ran.exists()


def test_a_compiler_that_ends_its_process_costs_one_variant_and_not_the_next() -> None:
    with BuildWorker() as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        assert worker.build("rms_norm", AXES, "sm_90").entry == "rms_norm"
