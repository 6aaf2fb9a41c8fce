"""Does `hjgc doctor` tell what is there, what is not, and what mends it?"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from hjgc.runtime.backends import cuda_provider
from hjgc.tools import machine
from hjgc.tools.commands import doctor
from hjgc.tools.requirements import REQUIREMENTS, Requirement, for_module
from tests.tools.command_line import CommandLine

ROOT = Path(__file__).parents[2]
H200 = machine.Device("NVIDIA H200", "sm_90", 150_754_820_096)


def examined(**status: str) -> list[doctor.Finding]:
    """What `examine` finds where the named packages (`_` for `-`) have these states, and all others are fine."""
    wrong = {name.replace("_", "-"): state for name, state in status.items()}
    return [
        doctor.Finding(
            known, None if wrong.get(known.package) == doctor.MISSING else "1", wrong.get(known.package, doctor.OK)
        )
        for known in REQUIREMENTS
    ]


def report(cuda: machine.Cuda | None = None, **status: str) -> dict[str, Any]:
    return doctor.as_data(examined(**status), cuda or machine.Cuda(None, (), "no driver here"))


def lines(shown: dict[str, Any]) -> str:
    return "\n".join(doctor.text(shown))


def test_the_table_of_requirements_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = [("", text) for text in project["dependencies"]]
    plain += [(extra, text) for extra, texts in project["optional-dependencies"].items() for text in texts]
    expected = {(extra, text.partition(";")[0].strip()) for extra, text in plain if not text.startswith("hjgc[")}
    assert {(known.extra, known.text) for known in REQUIREMENTS} == expected


def test_it_runs_here_and_its_json_tells_the_same(hjgc: CommandLine) -> None:
    ran = hjgc("doctor", "--json")
    data = json.loads(ran.out)
    assert (ran.code, ran.err, data["core_ok"]) == (0, "", True)
    assert data["executable"] == sys.executable
    assert data["processor"]["usable"] >= 1
    assert data["can"]["compile for cpu"] == "yes"
    text = hjgc("doctor").out
    assert all(entry["package"] in text for entry in data["packages"])
    assert data["cache"]["path"] in text


def test_the_cache_folder_is_the_one_that_builds_go_to(
    hjgc: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "one").write_bytes(bytes(100))
    monkeypatch.setenv("HJGC_CACHE_DIR", str(tmp_path))
    assert json.loads(hjgc("doctor", "--json").out)["cache"] == {"path": str(tmp_path), "writable": True, "bytes": 100}


@pytest.mark.parametrize(
    ("package", "lost"),
    [
        ("torch", {"export a checkpoint", "serve on cpu"}),
        ("triton", {"build kernels for sm_NN"}),
        ("cuda_bindings", {"serve on NVIDIA H200 (sm_90)"}),
    ],
)
def test_a_missing_extra_costs_what_it_is_for_and_names_its_command(package: str, lost: set[str]) -> None:
    shown = report(machine.Cuda("13.0", (H200,), None), **{package: doctor.MISSING})
    islands = {"run islands on the GPU"}  # there is none
    assert {ability for ability, answer in shown["can"].items() if answer != "yes"} == lost | islands
    assert shown["core_ok"]
    (entry,) = (entry for entry in shown["packages"] if entry["status"] == doctor.MISSING)
    assert f"-m pip install '{entry['requires']}'" in entry["mend"]
    assert entry["mend"] in lines(shown)


def test_a_broken_core_is_said_and_is_the_exit_code(hjgc: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Requirement("onnx>=1.19", "no_such_module", "", "compile")
    others = (known for known in REQUIREMENTS if known.package != "onnx")
    monkeypatch.setattr(doctor, "REQUIREMENTS", (broken, *others))
    ran = hjgc("doctor")
    assert (ran.code, ran.err) == (2, "")
    assert "core: onnx is broken\n  onnx: ModuleNotFoundError: No module named 'no_such_module'" in ran.out


def test_a_package_that_is_not_installed_is_missing() -> None:
    found = doctor.examine(Requirement("hjgc-no-such-package>=1", "no_such_module", "cpu", "nothing"))
    assert (found.version, found.status) == (None, doctor.MISSING)


def test_only_one_onnxruntime_is_ever_asked_for() -> None:
    assert "pip install" not in lines(report(onnxruntime_gpu=doctor.MISSING))
    assert "pip install" not in lines(report(onnxruntime=doctor.MISSING))
    neither = lines(report(onnxruntime=doctor.MISSING, onnxruntime_gpu=doctor.MISSING))
    assert re.findall(r"pip install '(.*)'", neither) == ["onnxruntime>=1.23"]


def test_devices_are_listed_with_the_target_to_compile_for() -> None:
    text = lines(report(machine.Cuda("13.0", (H200,), None)))
    assert "the driver supports CUDA 13.0" in text
    assert "device 0: NVIDIA H200, sm_90, 140.4 GiB" in text


@pytest.mark.parametrize(
    ("installed", "loads", "answer"),
    [
        (False, True, "no: onnxruntime-gpu is missing or broken; the host runs them"),
        (True, False, "no: its CUDA provider did not load: libcudnn.so.9 is nowhere; the host runs them"),
        (True, True, "yes"),
    ],
)
def test_islands_run_on_a_gpu_where_the_provider_opens_one(
    installed: bool, loads: bool, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_it(data: bytes, options: object) -> str | None:
        onnx.load_from_string(data)
        return None if loads else "its CUDA provider did not load: libcudnn.so.9 is nowhere"

    monkeypatch.setattr(cuda_provider, "provider_for", lambda ort, stream: SimpleNamespace(open=open_it))
    assert doctor.islands(installed) == answer


def test_islands_need_a_provider() -> None:
    assert doctor.islands(True).startswith("no: onnxruntime is installed without its CUDA provider; ")


def test_islands_are_not_tried_without_a_core_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    shown = report(machine.Cuda("13.0", (H200,), None), onnx=doctor.MISSING)
    assert shown["can"]["run islands on the GPU"] == "no: a core package is missing or broken"


def test_a_machine_without_a_driver_is_told_so() -> None:
    shown = report(machine.Cuda(None, (), "the NVIDIA driver is missing"))
    assert shown["can"]["serve on an NVIDIA GPU"] == "no: the NVIDIA driver is missing"
    assert "NVIDIA: the NVIDIA driver is missing" in lines(shown)


@pytest.mark.parametrize(
    ("text", "version", "accepted"),
    [
        ("torch>=2.11,<=2.13.0", "2.13.0+cpu", True),
        ("torch>=2.11,<=2.13.0", "2.13.1", False),
        ("torch>=2.11,<=2.13.0", "2.9.1", False),
        ("cuda-bindings>=13.0,<14", "13.5.0", True),
        ("cuda-bindings>=13.0,<14", "14.0.0", False),
        ("pyright[nodejs]>=1.1.414", "1.1.414", True),
        ("triton>=3.6", "3.10.0", True),
    ],
)
def test_versions_are_compared_by_their_numbers(text: str, version: str, accepted: bool) -> None:
    assert Requirement(text, "x", "", "").accepts(version) is accepted


def test_a_version_outside_the_range_still_works_but_is_said() -> None:
    shown = report(torch=doctor.OUTSIDE)
    assert shown["can"]["serve on cpu"] == "yes"
    assert "cpu: torch is outside the tested range" in lines(shown)


def test_a_module_is_traced_to_its_package() -> None:
    found = for_module("onnx_ir.passes")
    assert found is not None and found.package == "onnx-ir"
    assert for_module("hjgc.compiler") is None
