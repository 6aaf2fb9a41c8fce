"""What does `hjgc doctor` find installed, missing and broken here, and which command mends it?"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from hjgc._version import __version__
from hjgc.tools import console, machine
from hjgc.tools.console import size, table
from hjgc.tools.parameters import as_json, example
from hjgc.tools.requirements import REQUIREMENTS, Requirement, pip_command

OK, MISSING, OUTSIDE, BROKEN = "ok", "missing", "outside the tested range", "broken"
UNUSABLE = (MISSING, BROKEN)


@dataclass(frozen=True)
class Finding:
    """One package: `why` is the error of importing it, if that failed."""

    requirement: Requirement
    version: str | None
    status: str
    why: str = ""


@click.command(short_help="Say what is installed, what is missing, and what mends it.", epilog=example("hjgc doctor"))
@as_json
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Look at this machine: packages, processor, memory, NVIDIA devices, and what can be compiled and served here.

    Exit code 2 if a package that every installation needs is missing or broken, else 0."""
    findings = [examine(requirement) for requirement in REQUIREMENTS]
    shown = as_data(findings, machine.cuda())
    if as_json:
        console.result_json(shown)
    else:
        console.result("\n".join(text(shown)))
    if not shown["core_ok"]:
        context.exit(2)


def examine(requirement: Requirement) -> Finding:
    """What pip knows of it, and, if hjgc itself uses it, whether it can be imported."""
    version = requirement.installed()
    if version is None:
        return Finding(requirement, None, MISSING)
    if requirement.extra != "dev":
        try:
            importlib.import_module(requirement.module)
        except Exception as error:  # a broken installation fails in any way it likes
            return Finding(requirement, version, BROKEN, f"{type(error).__name__}: {error}")
    return Finding(requirement, version, OK if requirement.accepts(version) else OUTSIDE)


def as_data(findings: Sequence[Finding], cuda: machine.Cuda) -> dict[str, Any]:
    usable = {finding.requirement.package: finding.status not in UNUSABLE for finding in findings}
    core_ok = all(usable[finding.requirement.package] for finding in findings if not finding.requirement.extra)
    return {
        "hjgc": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "core_ok": core_ok,
        "packages": [_package(finding) for finding in findings],
        "processor": asdict(machine.processor()),
        "memory": asdict(machine.memory()),
        "cuda": asdict(cuda),
        "cache": _cache(),
        "can": abilities(core_ok, usable, cuda),
    }


def _package(finding: Finding) -> dict[str, Any]:
    requirement = finding.requirement
    return {
        "package": requirement.package,
        "requires": requirement.text,
        "extra": requirement.extra or None,
        "for": requirement.purpose,
        "version": finding.version,
        "status": finding.status,
        "why": finding.why or None,
        "mend": None if finding.status == OK else pip_command(requirement.text),
    }


def _cache() -> dict[str, Any]:
    """Where built kernels are kept."""
    from hjgc.compiler.build import cache_folder

    folder = cache_folder()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {"path": str(folder), "writable": _writable(folder), "bytes": sum(path.stat().st_size for path in files)}


def _writable(folder: Path) -> bool:
    """Whether it, or the nearest folder above it that is there, may be written to."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def abilities(core_ok: bool, usable: Mapping[str, bool], cuda: machine.Cuda) -> dict[str, str]:
    """What can be done here: `yes`, or what is missing for it."""
    missing = {name: f"no: {name} is missing or broken" for name, fine in usable.items() if not fine}
    core = "yes" if core_ok else "no: a core package is missing or broken"

    def needs(package: str) -> str:
        return missing.get(package, core)

    devices = {f"serve on {device.name} ({device.target})": needs("cuda-bindings") for device in cuda.devices}
    return {
        "export a checkpoint": needs("torch"),
        "compile for cpu": core,
        "build kernels for sm_NN": needs("triton"),
        "serve on cpu": needs("torch"),
        **(devices or {"serve on an NVIDIA GPU": f"no: {cuda.problem}"}),
        **({"run islands on the GPU": islands(usable["onnxruntime-gpu"]) if core_ok else core} if devices else {}),
        "verify against ONNX Runtime": core
        if usable["onnxruntime"] or usable["onnxruntime-gpu"]
        else needs("onnxruntime"),
    }


def islands(installed: bool) -> str:
    """Does ONNX Runtime's CUDA provider compute here? Tried on a sub-model of one node."""
    if not installed:
        return "no: onnxruntime-gpu is missing or broken; the host runs them"
    import onnx
    import onnxruntime as ort

    from hjgc.runtime.backends.cuda_provider import provider_for
    from hjgc.runtime.island_sessions import session_options

    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> f (float[1] x) => (y) { y = Exp(x) }')
    found = provider_for(ort, 0)
    found = found if isinstance(found, str) else found.open(model.SerializeToString(), session_options(ort))
    return f"no: {found}; the host runs them" if isinstance(found, str) else "yes"


def text(shown: dict[str, Any]) -> Iterator[str]:
    cpu, memory, cache = shown["processor"], shown["memory"], shown["cache"]
    yield f"hjgc {shown['hjgc']}, Python {shown['python']} ({shown['executable']}), {shown['platform']}"
    flags = " ".join(cpu["flags"]) or "none that matter here are known"
    yield f"processor: {cpu['name']} ({cpu['architecture']}), {cpu['usable']} of {cpu['cores']} cores usable; {flags}"
    yield f"memory: {_memory(memory)}"
    yield from _cuda(shown["cuda"])
    yield f"cache: {cache['path']}, {size(cache['bytes'])}{'' if cache['writable'] else ', NOT WRITABLE'}"
    yield ""
    rows = [
        (entry["package"], entry["version"] or "-", entry["status"], entry["extra"] or "core", entry["for"])
        for entry in shown["packages"]
    ]
    yield table(("package", "version", "status", "extra", "for"), rows)
    yield ""
    yield table(("can", "here"), shown["can"].items())
    yield from _mends(shown["packages"])


def _memory(memory: dict[str, int | None]) -> str:
    named = [f"{size(amount)} {name}" for name, amount in memory.items() if amount is not None]
    return ", ".join(named) or "unknown"


def _cuda(cuda: dict[str, Any]) -> Iterator[str]:
    if cuda["problem"]:
        yield f"NVIDIA: {cuda['problem']}"
        return
    yield f"NVIDIA: the driver supports CUDA {cuda['driver']}"
    for number, device in enumerate(cuda["devices"]):
        yield f"  device {number}: {device['name']}, {device['target']}, {size(device['bytes'])}"


def _mends(packages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is wrong, and one command for each extra. Never both ONNX Runtimes: they install the same module."""
    wrong = [entry for entry in packages if entry["status"] != OK and not _spare(entry, packages)]
    for extra, entries in groupby(wrong, key=lambda entry: entry["extra"] or "core"):
        found = list(entries)
        yield f"\n{extra}: " + ", ".join(f"{entry['package']} is {entry['status']}" for entry in found)
        yield from (f"  {entry['package']}: {entry['why']}" for entry in found if entry["why"])
        yield "  " + pip_command(*(entry["requires"] for entry in found))


def _spare(entry: dict[str, Any], packages: Sequence[dict[str, Any]]) -> bool:
    """Whether the entry is an ONNX Runtime that is not there and not wanted."""
    other = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-gpu": "onnxruntime"}.get(entry["package"])
    there = any(one["package"] == other and one["version"] for one in packages)
    return entry["status"] == MISSING and (there or entry["package"] == "onnxruntime-gpu")
