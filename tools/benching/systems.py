"""Which systems are measured, and with what is each started?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjgc.plan_format.errors import InputError
from hjgc.tools.benching.settings import Settings, spread

if TYPE_CHECKING:
    from hjgc.plan_format.structs import Plan

MODES = ("plain", "jit", "graph", "hybrid")
PEERS = ("eager", "compile", "ort", "ort-cuda")
HF, ONNX = "--hf DIR", "--onnx MODEL.onnx"
OPTIONS = {"eager": HF, "compile": HF, "ort": ONNX, "ort-cuda": ONNX}
COMPILED_LENGTHS = 4
"""torch.compile takes half a minute for each."""
PEER_REPEAT = 100
"""At most so many answers of a peer on a GPU, which is not whom a tail is promised of."""

Spec = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A system that has the device to itself for a while: how it is started, the prompt lengths and contexts it is
    measured at, and how many answers it gives at each."""

    spec: Mapping[str, Any]
    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    repeat: int


def on_a_device(plan: Plan, device: str | None) -> bool:
    """Is the plan measured on a GPU? Where nobody says, only if it is for nothing else. Raises InputError for a plan
    that no GPU can serve."""
    if device is None or device == "cpu":
        return device is None and "cpu" not in plan.targets
    if all(target == "cpu" for target in plan.targets):
        problem = f"expected a plan for a GPU, found one for {', '.join(plan.targets)}"
        raise InputError("--device", problem, next_step="compile it again with --target sm_90, or your GPU's")
    return True


def plan_specs(
    path: Path,
    modes: Sequence[str],
    weights: Path | None,
    device: str | None,
    *,
    strict: bool = False,
    rebuild: bool = False,
) -> dict[str, Spec]:
    common = {"kind": "plan", "plan": str(path), "weights": None if weights is None else str(weights), "device": device}
    rules = {name: True for name, said in (("strict", strict), ("rebuild", rebuild)) if said}
    return {f"hjgc {name}": common | rules | {"mode": name} for name in modes}


def peer_paths(
    names: Sequence[str] | None, hf: Path | None, onnx: Path | None, *, device: bool = False
) -> dict[str, Path]:
    """The model of each peer; without names, of the usual ones whose model is given. Raises InputError for a peer
    without its model, and for one that does not run there or is not installed."""
    given = {"eager": hf, "compile": hf, "ort": onnx, "ort-cuda": onnx}
    if names is None:
        usual = ("eager", "ort-cuda" if device else "ort")
        names = tuple(name for name in usual if given[name] is not None)
    return {name: _checked(name, given[name], device) for name in names}


def _checked(name: str, path: Path | None, device: bool) -> Path:
    option = OPTIONS[name]
    if device and name == "ort":
        problem = "expected peers that run on the GPU, found ort, which is measured on the CPU"
        raise InputError("--peers", problem, next_step="use ort-cuda, or bench a plan for the CPU")
    if not device and name == "ort-cuda":
        problem = "expected peers that run on the CPU, found ort-cuda, which is measured on a GPU"
        raise InputError("--peers", problem, next_step="use ort, or add --device cuda")
    if path is None:
        raise InputError("--peers", f"expected a model for {name}, found none", next_step=f"add {option}")
    if not path.exists():
        raise InputError(path, "expected the model of a peer, found nothing there", field=option.split()[0])
    if name == "ort-cuda":
        from hjgc.tools.peers.ort_providers import load_cuda

        load_cuda()  # refused now: others may take an hour first
    return path


def peer_specs(plan: Plan, paths: Mapping[str, Path], settings: Settings) -> dict[str, Spec]:
    """On the CPU: eager with the cache that transformers chooses."""
    specs: dict[str, Spec] = {}
    for name, path in paths.items():
        match name:
            case "eager":
                specs[name] = {"kind": "eager", "folder": str(path), "dtype": plan.dtypes.compute}
            case "compile":
                specs[name] = _static(plan, path, "cpu", settings.lengths, settings, compiled=True)
            case _:
                specs[name] = {"kind": "ort", "model": str(path)}
        specs[name]["threads"] = settings.threads
    return specs


def contenders(
    specs: Mapping[str, Spec], plan: Plan, paths: Mapping[str, Path], settings: Settings
) -> dict[str, Contender]:
    """Everybody on a GPU, our own first. A compiled peer is measured at few lengths, and at the contexts that the cache
    for these holds."""
    ours = {name: Contender(spec, settings.lengths, settings.contexts, settings.repeat) for name, spec in specs.items()}
    return ours | {name: _peer(plan, name, path, settings) for name, path in paths.items()}


def _peer(plan: Plan, name: str, path: Path, settings: Settings) -> Contender:
    compiled = name == "compile"
    lengths, contexts, repeat = settings.lengths, settings.contexts, min(settings.repeat, PEER_REPEAT)
    if name == "ort-cuda":
        spec: Spec = {"kind": "ort", "model": str(path), "provider": "cuda", "threads": settings.threads}
        return Contender(spec, lengths, contexts, repeat)
    if compiled:
        lengths = spread(lengths, COMPILED_LENGTHS)
        contexts = tuple(context for context in contexts if context <= max(lengths))
    spec = _static(plan, path, "cuda", (*lengths, *contexts), settings, compiled=compiled)
    spec |= {"threads": settings.threads, "lengths": list(lengths) if compiled else []}
    return Contender(spec, lengths, contexts, repeat)


def _static(plan: Plan, path: Path, device: str, sizes: Sequence[int], settings: Settings, *, compiled: bool) -> Spec:
    return {
        "kind": "static",
        "folder": str(path),
        "dtype": plan.dtypes.compute,
        "device": device,
        "capacity": max(sizes) + settings.decode + 8,
        "lengths": list(sizes),
        "compiled": compiled,
    }
