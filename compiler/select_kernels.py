"""Which kernel runs each step on each target?"""

from __future__ import annotations

from pathlib import Path

from hjgc.compiler.program import Program, Step
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import HostCall, Kernel, ReferenceCall


def select_kernels(program: Program, targets: tuple[str, ...], path: Path) -> tuple[dict[str, Kernel], ...]:
    """One kernel a target for each step. Raises CompileError for a step that a target has no kernel for."""
    return tuple({target: _select(step, target, path) for target in targets} for step in program.steps)


def _select(step: Step, target: str, path: Path) -> Kernel:
    if all_ops()[step.op].host:
        return HostCall("logits_processor")
    if target == "cpu":
        return ReferenceCall()
    raise CompileError(
        path,
        f"expected a kernel template for {step.op} on {target}, found none",
        field=f"step {step.name}",
        next_step="compile with --target cpu",
    )
