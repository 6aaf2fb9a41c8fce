"""From a plan file and a folder of weights to a session on a device of this machine: what is opened, and what is
missing?"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, cast

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import InputError, PlanError, RunError
from hjgc.runtime.backend import Backend, FunctionBackend, HostFunction
from hjgc.runtime.code_choice import Trust
from hjgc.runtime.function import Function
from hjgc.runtime.functions import Functions
from hjgc.runtime.opening_cuda import GPU, CodeRules, Unusable, open_cuda
from hjgc.runtime.session import GRAPH_BYTES, NO_FUNCTIONS, Session
from hjgc.runtime.supply import CodeSource
from hjgc.runtime.trace import Trace


@dataclass(frozen=True)
class Opened:
    """A verified plan file, held open, and the folder that its files are named from."""

    file: PlanFile
    root: Path


class OpenedSession(Session):
    """A session that owns its plan file too, and closes it last."""

    def __init__(
        self,
        file: PlanFile,
        backend: Backend | CodeSource,
        *,
        graph_bytes: int,
        capture: bool,
        functions: Mapping[str, HostFunction] = NO_FUNCTIONS,
    ) -> None:
        self._file = file
        if isinstance(backend, CodeSource):
            plan, source, backend = backend.choice.plan, backend, backend.backend
        else:
            plan, source = file.plan, None
        super().__init__(plan, backend, graph_bytes=graph_bytes, capture=capture, source=source, functions=functions)

    def trace(self) -> Trace:
        return Trace(self._watched(), self._file.debug())

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._file.close()


def open_session(
    plan: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    graph_bytes: int = GRAPH_BYTES,
    capture: bool = True,
    strict: bool = False,
    trust: Trust = "plan",
    progress: Callable[[str], None] = lambda stage: None,
    functions: Mapping[str, HostFunction] = NO_FUNCTIONS,
) -> Session:
    """A session for the plan at this path. `weights` is the folder of its weight files (by default the plan's own).
    `device` is one of the plan's targets, or "cuda" for this machine's GPU; by default the first target that works on
    this machine.

    On a GPU the plan may lack code: for the chip, or for long prompts. What is there serves, and the rest is built
    behind the requests; if nothing is there, opening waits and tells `progress` how far it is. `strict` makes either an
    error.
    `trust="templates"` leaves the plan's device code alone and builds all of it from the templates installed with hjgc
    before the first request.

    `functions` are those that the plan calls between two launches, by name; others may be registered later.

    Close it, or use it as a context manager. Raises PlanError, InputError, RunError."""
    return start_session(
        open_plan(plan, weights),
        device=device,
        graph_bytes=graph_bytes,
        capture=capture,
        strict=strict,
        trust=trust,
        progress=progress,
        functions=functions,
    )


def load(plan: str | Path, *, weights: str | Path | None = None, device: str | None = None, **options: Any) -> Any:
    """What serves the plan at this path: a `Function` for one that was compiled as a function, a `Session` for a
    decoder. The `options` are those of `open_session`; `functions` are for a decoder alone. Raises PlanError,
    InputError, RunError."""
    known = signature(open_session).parameters
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise RunError(f"expected options among {', '.join(known)}, found {unknown!r}")
    opened = open_plan(plan, weights)
    given: dict[str, Any] = {"graph_bytes": GRAPH_BYTES, "capture": True, **options}
    if not opened.file.plan.is_function:
        return start_session(opened, device=device, **given)
    if given.pop("functions", None):
        opened.file.close()
        raise RunError("expected no functions of the caller's for a plan that is a function: it calls none")
    return start_function(opened, device=device, **given)


def check_decoder(file: PlanFile) -> None:
    """Raises PlanError for a plan that is a function."""
    if file.plan.is_function:
        problem = "expected a decoder, found a plan that is a function of its inputs"
        step = "call it: hjgc.load(plan)(inputs), or `hjgc run --feed`"
        raise PlanError(file.path, problem, field="$.phases", next_step=step)


def start_function(
    opened: Opened,
    *,
    device: str | None = None,
    graph_bytes: int = GRAPH_BYTES,
    capture: bool = True,
    strict: bool = False,
    trust: Trust = "plan",
    progress: Callable[[str], None] = lambda stage: None,
) -> Function:
    """Load the weights onto the device and be ready for calls. Whatever goes wrong, the plan file is closed: nothing of
    it is needed later."""
    with opened.file as file:
        source = _open_backend(opened, device, CodeRules(strict, trust, progress))
        plan, backend = (source.choice.plan, source.backend) if isinstance(source, CodeSource) else (file.plan, source)
        try:
            return Function(
                plan,
                cast(FunctionBackend, backend),  # every backend of this package has what functions need
                graph_bytes=graph_bytes,
                capture=capture,
                source=source if isinstance(source, CodeSource) else None,
            )
        except BaseException:
            source.close()
            raise


def open_plan(plan: str | Path, weights: str | Path | None = None) -> Opened:
    """Read and verify the plan, and look for the folder of its weights. Raises PlanError, InputError."""
    path = Path(plan)
    root = path.parent if weights is None else Path(weights)
    file = PlanFile(path)
    if not root.is_dir():
        file.close()
        raise InputError(root, "expected the folder of the plan's weights, found no folder", next_step="mend `weights`")
    return Opened(file, root)


def start_session(
    opened: Opened,
    *,
    device: str | None,
    graph_bytes: int,
    capture: bool,
    strict: bool = False,
    trust: Trust = "plan",
    progress: Callable[[str], None] = lambda stage: None,
    functions: Mapping[str, HostFunction] = NO_FUNCTIONS,
) -> Session:
    """Load the weights onto the device and start serving. Whatever goes wrong, the plan file is closed."""
    try:
        check_decoder(opened.file)
        Functions(opened.file.plan, functions)  # a wrong name is told before the weights are loaded
        backend = _open_backend(opened, device, CodeRules(strict, trust, progress))
        try:
            return OpenedSession(opened.file, backend, graph_bytes=graph_bytes, capture=capture, functions=functions)
        except BaseException:
            backend.close()
            raise
    except BaseException:
        opened.file.close()
        raise


def _open_backend(opened: Opened, device: str | None, rules: CodeRules) -> Backend | CodeSource:
    """The first wanted target that works here. Raises PlanError that says of each why it does not."""
    file, reasons = opened.file, list[str]()
    for target in _wanted(file, device):
        try:
            return _cpu(opened) if target == "cpu" else open_cuda(file, opened.root, target, rules)
        except Unusable as why:
            named = ", ".join(name for name in file.plan.targets if name != "cpu") if target == GPU else target
            reasons.append(f"{named}: {why}")
    problem = f"expected a target that works on this machine, found none ({'; '.join(reasons)})"
    raise PlanError(file.path, problem, field="$.targets", next_step="mend one, or compile with another --target")


def _wanted(file: PlanFile, device: str | None) -> list[str]:
    """The devices to try: `cpu`, `cuda` for a GPU whatever its chip, or the target that was named."""
    targets = file.plan.targets
    if device is not None and device in targets:
        return [device]
    wanted = list(dict.fromkeys("cpu" if target == "cpu" else GPU for target in targets))
    wanted = [target for target in wanted if device in (None, target)]
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


def _backend(module: str, name: str) -> Any:
    """A backend's class, imported only now: each brings what others must do without (torch, the CUDA bindings)."""
    return getattr(importlib.import_module(f"hjgc.runtime.backends.{module}"), name)
