"""Which kernel runs each step on each target?"""

from __future__ import annotations

from pathlib import Path

from hjgc.compiler.program import Program, Step
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import HostCall, Kernel, ReferenceCall


def select_kernels(program: Program, targets: tuple[str, ...], path: Path) -> tuple[dict[str, Kernel], ...]:
    """One kernel a target for each step. Raises CompileError that names what a target has no kernel for."""
    for target in targets:
        missing = [step for step in program.steps if _kernel(step, target) is None]
        if missing:
            ops = ", ".join(dict.fromkeys(step.op for step in missing))
            raise CompileError(
                path,
                f"expected a kernel template on {target} for each step, found none for {ops}",
                field=f"step {missing[0].name}",
                next_step="compile with --target cpu",
            )
    return tuple({t: kernel for t in targets if (kernel := _kernel(step, t)) is not None} for step in program.steps)


def _kernel(step: Step, target: str) -> Kernel | None:
    if all_ops()[step.op].host:
        return HostCall("logits_processor")
    return ReferenceCall() if target == "cpu" else None
