"""How does each stage leave its result as text, when `HJGC_DUMP` names a folder?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from hjgc.compiler.plan_memory import MemoryPlan
from hjgc.compiler.program import Program
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import Schedule
from hjgc.plan_format.text import schedule_lines


class Dumper:
    """Writes `03-classify.txt` and so on, in the order the stages call. Does nothing where no folder is asked for."""

    def __init__(self, folder: str | None = None) -> None:
        folder = os.environ.get("HJGC_DUMP") if folder is None else folder
        self.folder = Path(folder) if folder else None
        self.count = 0

    def write(self, stage: str, text: Callable[[], str]) -> None:
        self.count += 1
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{self.count:02}-{stage}.txt").write_text(text(), encoding="utf-8")
        except OSError as error:
            raise InputError(self.folder, f"expected a folder for dumps, found {error.strerror}", field="HJGC_DUMP") from None


def graph_text(model: ir.Model) -> str:
    """Inputs, one node a line, outputs."""
    lines = [f"input {_value(value)}" for value in model.graph.inputs]
    for node in model.graph:
        outputs = ", ".join(_value(value) for value in node.outputs)
        inputs = ", ".join("-" if value is None else str(value.name) for value in node.inputs)
        attributes = " ".join(f"{name}={attr.value}" for name, attr in sorted(node.attributes.items()))
        lines.append(f"{outputs} = {node.domain + '.' if node.domain else ''}{node.op_type}({inputs}) {{{attributes}}}")
    lines += [f"output {_value(value)}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def _value(value: ir.Value) -> str:
    shape = "?" if value.shape is None else ",".join(str(axis) for axis in value.shape)
    return f"{value.name}:{value.dtype.name.lower() if value.dtype else '?'}[{shape}]"


def program_text(program: Program) -> str:
    """Sizes, then one step a line."""
    lines = [f"phase {program.phase}"]
    lines += [f"  size {size.name}: {size.low}..{size.high} on the {size.lives}" for size in program.sizes]
    for step in program.steps:
        operands = ", ".join(
            f"{role}={tensor.name}:{tensor.dtype}[{','.join(spell(axis) for axis in tensor.shape)}]"
            for role, tensor in step.operands.items()
        )
        lines.append(f"  {step.name} = {step.op}({operands}) {step.attributes}")
    return "\n".join(lines) + "\n"


def memory_text(program: Program, memory: MemoryPlan) -> str:
    lines = [f"phase {program.phase}: {memory.bytes} bytes"]
    lines += [f"  {b.name}: {b.offset}+{b.bytes} launches {b.first}..{b.last}" for b in memory.buffers]
    return "\n".join(lines) + "\n"


def schedules_text(program: Program, schedules: tuple[Schedule, ...]) -> str:
    lines = [f"phase {program.phase}"]
    lines += [line for schedule in schedules for line in schedule_lines(schedule)]
    return "\n".join(lines) + "\n"
