"""How is a plan opened on this machine's GPU, whichever chip it is?"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError, RunError
from hjgc.runtime.backend import CodeBackend
from hjgc.runtime.build_child import BuildChild, Child
from hjgc.runtime.code_choice import CodeChoice, Trust, choose_code
from hjgc.runtime.just_in_time import JustInTime, NotBuilt, Why
from hjgc.runtime.retarget import NoKernels
from hjgc.runtime.supply import CodeSource

GPU = "cuda"
"""What a user calls this machine's GPU, whichever chip it is."""


class Unusable(Exception):
    """Why a target cannot serve here: a sentence, with the command that mends it where there is one."""


@dataclass(frozen=True)
class CodeRules:
    """What a user said about code that was not built ahead of time; `progress` is told of builds that must be waited
    for."""

    strict: bool = False
    trust: Trust = "plan"
    progress: Callable[[str], None] = lambda stage: None


def open_cuda(
    file: PlanFile,
    root: Path,
    target: str,
    rules: CodeRules,
    *,
    driver: Any = None,
    start: Callable[[], Child] = BuildChild,
) -> CodeSource:
    """The backend, and who builds what it lacks. `target` is GPU, or the one of the plan's that the user named. Raises
    Unusable, PlanError, RunError."""
    driver = driver or _open_driver()
    try:
        if target.startswith("sm_") and driver.target != target:
            raise Unusable(f"this machine's GPU is {driver.target}")
        choice = _choose(file, driver.target, None if target == GPU else target, rules)
        builds = JustInTime(choice.plan, start)
        built = _build(file, choice, builds, rules)
    except BaseException:
        driver.close()
        raise
    backend: CodeBackend = importlib.import_module("hjgc.runtime.backends.cuda").CudaBackend(
        file, root, driver=driver, plan=choice.plan, target=choice.target, built=built
    )
    return CodeSource(choice, backend, builds, strict=rules.strict)


def _open_driver() -> Any:
    try:
        return importlib.import_module("hjgc.runtime.backends.cuda_driver").Driver()
    except RunError as error:  # no bindings, no driver or no device, each with its remedy
        raise Unusable(str(error)) from None


def _choose(file: PlanFile, chip: str, asked: str | None, rules: CodeRules) -> CodeChoice:
    try:
        return choose_code(file.plan, chip, asked=asked, trust=rules.trust, strict=rules.strict)
    except NoKernels as why:
        raise Unusable(f"this machine's GPU is {chip}; {why}") from None


def _build(file: PlanFile, choice: CodeChoice, builds: JustInTime, rules: CodeRules) -> dict[int, BuiltVariant]:
    """What must be there before the first request."""
    if choice.why is None:
        return {}
    try:
        return builds.build_now(choice.now, choice.why, rules.progress)
    except NotBuilt as error:
        if choice.why is Why.REBUILD:
            problem = f"expected every kernel built from the templates installed with hjgc: {error}"
            raise PlanError(file.path, problem, field="$.variants") from None
        raise Unusable(f"this machine's GPU is a {choice.target}, and {choice.words}: {error}") from None
