"""Which kernel runs each step on each target?

Choices only: a template, its axes, and how a launch calls it. The next stage builds the code, each variant
once, however many launches share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hjgc.compiler.build_variants import VariantKey
from hjgc.compiler.function.choice import Limits, choose_tensor
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.compiler.kernels.prefill_choice import RANGED, Choice, choose_prefill, range_ends, splits
from hjgc.compiler.kernels.tiles import NoTemplate, choose_decode
from hjgc.compiler.lower import most_rows, step_dims
from hjgc.compiler.program import Program, Step
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import bind_axes
from hjgc.plan_format.sizes import bounds
from hjgc.plan_format.structs import (
    DTypes,
    HostCall,
    IslandCall,
    Kernel,
    Operand,
    ReferenceCall,
    RowRange,
    RowsCall,
    TemplateCall,
)

KernelTable = tuple[dict[str, Kernel], ...]


class Selector:
    """Chooses kernels phase by phase. `variants` are those that the choices so far need, in order of first use; `ahead`
    those of them that calls of up to `high` rows need, to be built ahead of time."""

    def __init__(self, targets: tuple[str, ...], dtypes: DTypes, path: Path, high: int) -> None:
        self._targets, self._dtypes, self._path, self._high = targets, dtypes, path, high
        self._numbers: dict[VariantKey, int] = {}
        self.ahead: set[VariantKey] = set()

    @property
    def variants(self) -> tuple[VariantKey, ...]:
        return tuple(self._numbers)

    def select(self, program: Program) -> KernelTable:
        """One kernel a target for each step. Raises CompileError that names what a target has no kernel for."""
        parts = {step.operands["parts"].name: step for step in program.steps if step.op == "linear_parts"}
        return tuple({t: self._kernel(program, step, t, parts) for t in self._targets} for step in program.steps)

    def _kernel(self, program: Program, step: Step, target: str, parts: Mapping[str, Step]) -> Kernel:
        if all_ops()[step.op].island:
            return IslandCall(step.island)
        if all_ops()[step.op].host:
            return HostCall(step.callback)
        if target == "cpu":
            return ReferenceCall()
        try:
            if all_ops()[step.op].infer is not None:
                return self._call(step, target, choose_tensor(step, target, size_limits(program)))
            rows = most_rows(program)
            if rows is None:
                return self._call(step, target, Choice(*self._decode(step, target)))
            return self._prompt(step, target, rows, parts)
        except NoTemplate as why:
            raise CompileError(
                self._path,
                f"expected a kernel template on {target} for each step, found none for {step.op}: {why}",
                field=f"step {step.name}",
                next_step="compile with --target cpu",
            ) from None

    def _decode(self, step: Step, target: str) -> tuple[str, dict[str, AxisValue]]:
        return choose_decode(step.op, step_dims(step), self._dtypes, step.operands, target)

    def _prompt(self, step: Step, target: str, rows: int, parts: Mapping[str, Step]) -> Kernel:
        ends = range_ends(target, rows) if step.op in RANGED else (rows,)
        before = (0, *ends)  # the range up to `end` begins behind it
        calls = [
            self._call(step, target, self._choice(step, target, end, rows, parts), ahead=first < self._high)
            for first, end in zip(before, ends, strict=False)
        ]
        if all(call == calls[0] for call in calls):
            return calls[0]
        return RowsCall(tuple(RowRange(end, call) for end, call in zip(ends, calls, strict=True)))

    def _choice(self, step: Step, target: str, end: int, rows: int, parts: Mapping[str, Step]) -> Choice:
        cut = 0
        if step.op == "join":
            made = step_dims(parts[step.operands["parts"].name])
            cut = splits(target, end, made["N"], made["K"], rows)
        return choose_prefill(step.op, step_dims(step), self._dtypes, step.operands, target, end, rows, cut)

    def _call(self, step: Step, target: str, choice: Choice, *, ahead: bool = True) -> TemplateCall:
        found = template(choice.template)
        found.check(choice.axes)
        key = (choice.template, target, tuple(sorted(choice.axes.items())))
        number = self._numbers.setdefault(key, len(self._numbers))
        if ahead:
            self.ahead.add(key)
        op = all_ops()[step.op]
        letters = choice.letters
        if letters is None:
            letters = bind_axes(op, {role: tensor.shape for role, tensor in step.operands.items()})
        roles = op.ordered(step.operands)
        # Only the roles count here: emit knows where operands live.
        names = {role: name for name, role in choice.roles.items()}
        operands = tuple(
            Operand(names.get(role.name, role.name), step.operands[role.name].space, 0, role.access) for role in roles
        )
        return found.call(number, choice.axes, operands, letters)


def size_limits(program: Program) -> Limits:
    """The least and the most of each expression over the program's sizes."""
    ranges = {size.name: (size.low, size.high) for size in program.sizes}
    return lambda axis: bounds(axis, ranges)


def kernels_text(programs: Sequence[Program], tables: Sequence[KernelTable], variants: tuple[VariantKey, ...]) -> str:
    """The dump of this stage: by step and target, the template and its axes."""
    lines: list[str] = []
    for program, table in zip(programs, tables, strict=True):
        lines.append(f"phase {program.phase}")
        for step, by_target in zip(program.steps, table, strict=True):
            for target, kernel in by_target.items():
                lines += [f"  {step.name} on {target}: {words}" for words in _words(kernel, variants)]
    return "\n".join(lines) + "\n"


def _words(kernel: Kernel, variants: tuple[VariantKey, ...]) -> list[str]:
    match kernel:
        case TemplateCall():
            name, _, axes = variants[kernel.variant]
            return [f"{name} {' '.join(f'{axis}={value}' for axis, value in axes)}"]
        case RowsCall():
            return [f"up to {entry.high}: {_words(entry.call, variants)[0]}" for entry in kernel.ranges]
        case ReferenceCall():
            return ["the reference"]
        case IslandCall():
            return [f"ONNX Runtime, island {kernel.island}"]
        case HostCall():
            return [f"the caller's {kernel.callback}"]
        case _:
            return [f"{kernel.library} {kernel.routine}"]
