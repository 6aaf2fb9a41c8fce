"""From a plan file and a folder of weights to a session on a device of this machine: what is opened, and what is
missing?"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import InputError, PlanError, RunError
from hjgc.runtime.backend import Backend
from hjgc.runtime.session import GRAPH_BYTES, Session


class Unusable(Exception):
    """Why a target cannot serve here: a sentence, with the command that mends it where there is one."""


@dataclass(frozen=True)
class Opened:
    """A verified plan file, held open, and the folder that its files are named from."""

    file: PlanFile
    root: Path


class OpenedSession(Session):
    """A session that owns its plan file too, and closes it last."""

    def __init__(self, file: PlanFile, backend: Backend, *, graph_bytes: int, capture: bool) -> None:
        self._file = file
        super().__init__(file.plan, backend, graph_bytes=graph_bytes, capture=capture)

    def close(self) -> None:
        super().close()
        self._file.close()


def open_session(
    plan: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    graph_bytes: int = GRAPH_BYTES,
    capture: bool = True,
) -> Session:
    """A session for the plan at this path. `weights` is the folder of its weight files (by default the plan's own).
    `device` is one of the plan's targets, or "cuda" for whichever of them is this GPU's; by default the first target
    that works on this machine. Close it, or use it as a context manager. Raises PlanError, InputError, RunError."""
    return start_session(open_plan(plan, weights), device=device, graph_bytes=graph_bytes, capture=capture)


def open_plan(plan: str | Path, weights: str | Path | None = None) -> Opened:
    """Read and verify the plan, and look for the folder of its weights. Raises PlanError, InputError."""
    path = Path(plan)
    root = path.parent if weights is None else Path(weights)
    file = PlanFile(path)
    if not root.is_dir():
        file.close()
        raise InputError(root, "expected the folder of the plan's weights, found no folder", next_step="mend `weights`")
    return Opened(file, root)


def start_session(opened: Opened, *, device: str | None, graph_bytes: int, capture: bool) -> Session:
    """Load the weights onto the device and start serving. Whatever goes wrong, the plan file is closed."""
    try:
        backend = _open_backend(opened, device)
        try:
            return OpenedSession(opened.file, backend, graph_bytes=graph_bytes, capture=capture)
        except BaseException:
            backend.close()
            raise
    except BaseException:
        opened.file.close()
        raise


def _open_backend(opened: Opened, device: str | None) -> Backend:
    """The first wanted target that works here. Raises PlanError that says of each why it does not."""
    reasons: list[str] = []
    for target in _wanted(opened.file, device):
        try:
            return _cpu(opened) if target == "cpu" else _cuda(opened, target)
        except Unusable as why:
            reasons.append(f"{target}: {why}")
    problem = f"expected a target that works on this machine, found none ({'; '.join(reasons)})"
    raise PlanError(
        opened.file.path, problem, field="$.targets", next_step="mend one, or compile with another --target"
    )


def _wanted(file: PlanFile, device: str | None) -> list[str]:
    targets = file.plan.targets
    wanted = [t for t in targets if device is None or t == device or (device == "cuda" and t.startswith("sm_"))]
    if not wanted:
        raise PlanError(
            file.path,
            f"expected a plan for {device}, found one for {', '.join(targets)}",
            field="$.targets",
            next_step="choose one of these as the device, or compile with another --target",
        )
    return wanted


def _cpu(opened: Opened) -> Backend:
    if find_spec("torch") is None:
        raise Unusable("torch is not installed, try pip install 'hjgc[cpu]'")
    return _backend("cpu", "CpuBackend")(opened.file, opened.root)


def _cuda(opened: Opened, target: str) -> Backend:
    try:
        driver = importlib.import_module("hjgc.runtime.backends.cuda_driver").Driver()
    except RunError as error:  # no bindings, no driver or no device, each with its remedy
        raise Unusable(str(error)) from None
    if driver.target != target:
        found = driver.target
        driver.close()
        raise Unusable(f"this machine's GPU is {found}")
    return _backend("cuda", "CudaBackend")(opened.file, opened.root, driver=driver)


def _backend(module: str, name: str) -> Any:
    """A backend's class, imported only now: each brings what others must do without (torch, the CUDA bindings)."""
    return getattr(importlib.import_module(f"hjgc.runtime.backends.{module}"), name)
