"""How does each stage leave its result as text, when `HJGC_DUMP` names a folder?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from hjgc.compiler.plan_memory import MemoryPlan
from hjgc.compiler.program import Program, Step
from hjgc.compiler.rules.rule import VALUE_KEY
from hjgc.plan_format.errors import InputError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import Schedule
from hjgc.plan_format.text import schedule_lines


class Dumper:
    """Writes `03-classify.txt` and so on, in the order the stages call. Does nothing where no folder is asked for."""

    def __init__(self, folder: str | None = None) -> None:
        folder = os.environ.get("HJGC_DUMP") if folder is None else folder
        self.folder = Path(folder) if folder else None
        self.count = 0

    def restart(self) -> None:
        """What was written is left behind: another way is tried from the beginning."""
        self.count = 0

    def write(self, stage: str, text: Callable[[], str]) -> None:
        self.count += 1
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{self.count:02}-{stage}.txt").write_text(text(), encoding="utf-8")
        except OSError as error:
            problem = f"expected a folder for dumps, found {error.strerror}"
            raise InputError(self.folder, problem, field="HJGC_DUMP", next_step="name another") from None


def graph_text(model: ir.Model) -> str:
    """Inputs, one node a line, outputs."""
    lines = [f"input {_value(value)}" for value in model.graph.inputs]
    for node in model.graph:
        outputs = ", ".join(_value(value) for value in node.outputs)
        inputs = ", ".join("-" if value is None else _name(value) for value in node.inputs)
        attributes = " ".join(f"{name}={_spell(attr.value)}" for name, attr in sorted(node.attributes.items()))
        lines.append(f"{outputs} = {node.domain + '.' if node.domain else ''}{node.op_type}({inputs}) {{{attributes}}}")
    lines += [f"output {_value(value)}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def _value(value: ir.Value) -> str:
    shape = "?" if value.shape is None else ",".join(str(axis) for axis in value.shape)
    return f"{_name(value)}:{value.dtype.name.lower() if value.dtype else '?'}[{shape}]"


def _name(value: ir.Value) -> str:
    """The name that the value has in the ONNX file, also where a rule made it anew."""
    return value.metadata_props.get(VALUE_KEY) or str(value.name)


def _spell(value: Any) -> str:
    """A number that ONNX holds in float32 as float32 is written: 1e-05, not 9.999999747378752e-06."""
    exact = isinstance(value, float) and float(np.float32(value)) == value
    return str(np.float32(value)) if exact else str(value)


LIVES = {"key": "fixed in a graph", "device": "read on the device"}


def program_text(program: Program) -> str:
    """Sizes, then one step a line; what a step writes is marked with `>` and has its type."""
    lines = [f"phase {program.phase}"]
    lines += [f"  size {size.name}: {size.low}..{size.high}, {LIVES[size.lives]}" for size in program.sizes]
    return "\n".join([*lines, *map(_step_text, program.steps)]) + "\n"


def _step_text(step: Step) -> str:
    operands: list[str] = []
    for role in all_ops()[step.op].ordered(step.operands):
        tensor = step.operands[role.name]
        shape = f":{tensor.dtype}[{','.join(map(spell, tensor.shape))}]"
        is_read = role.access == "read"
        operands.append(f"{role.name}={tensor.name}" if is_read else f">{role.name}={tensor.name}{shape}")
    attributes = " ".join(f"{name}={_spell(value)}" for name, value in step.attributes.items())
    return f"  {step.name} = {step.op}({', '.join(operands)}) {{{attributes}}}"


def memory_text(program: Program, memory: MemoryPlan) -> str:
    lines = [f"phase {program.phase}: {memory.bytes} bytes"]
    lines += [f"  {b.name}: {b.bytes} at {b.offset}, launches {b.first}..{b.last}" for b in memory.buffers]
    return "\n".join(lines) + "\n"


def schedules_text(program: Program, schedules: tuple[Schedule, ...]) -> str:
    lines = [f"phase {program.phase}"]
    lines += [line for schedule in schedules for line in schedule_lines(schedule)]
    return "\n".join(lines) + "\n"
