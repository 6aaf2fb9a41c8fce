"""How do tests get a function on a GPU that is not there, whose one kernel adds 1 to float32 numbers?

`write_gpu_function(folder, text)` is the function of ONNX's text with each of its launches replaced by that kernel,
from its first operand to its last; islands stay. `AddingDriver` computes launches and replays at once, in the order of
the stream, and writes down their grids.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hjgc.plan_format import save
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.sizes import Binary, Expression
from hjgc.plan_format.structs import (
    BuiltCode,
    CodeReference,
    IslandCall,
    Launch,
    OperandArgument,
    Phase,
    Template,
    TemplateCall,
    ValueArgument,
    Variant,
)
from hjgc.runtime.backends.cuda_driver import LaunchShape
from tests.runtime.fake_driver import FakeDriver
from tests.runtime.functions import write_function
from tests.runtime.norms import CODE

replace = msgspec.structs.replace
PARAMETERS = ("pointer", "pointer", "int32")
BLOCK = 4
"""Numbers of a block."""
Values = tuple[int, int, int]


def write_gpu_function(
    folder: Path, text: str, sizes: Mapping[str, tuple[int, int]] | None = None, *, target: str = "sm_90"
) -> Path:
    """The path of the plan."""
    section = "ptx" if target.startswith("compute") else "cubin"
    with PlanFile(write_function(folder, text, sizes, "cpu.hjg")) as file:
        reference = CodeReference(section, 0, len(CODE), hashlib.sha256(CODE).hexdigest())
        variant = Variant(0, target, {}, PARAMETERS, built=BuiltCode("add", 128, 0, reference))
        plan = replace(
            file.plan,
            targets=(target,),
            phases=tuple(_phase(phase, target) for phase in file.plan.phases),
            templates=(Template("add", "0" * 64, ()),),
            variants=(variant,),
        )
        sections = {name: file.section(name) for name in ("constants", "islands")}
    save(folder / "plan.hjg", plan, sections={**sections, section: CODE})
    return folder / "plan.hjg"


def _phase(phase: Phase, target: str) -> Phase:
    return replace(phase, launches=tuple(_launch(phase, launch, target) for launch in phase.launches))


def _launch(phase: Phase, launch: Launch, target: str) -> Launch:
    kernel = launch.kernels["cpu"]
    if isinstance(kernel, IslandCall):
        return replace(launch, kernels={target: kernel})
    count: Expression = reduce(lambda a, b: Binary("mul", a, b), phase.buffers[launch.operands[-1].index].shape)
    ends = OperandArgument(0), OperandArgument(len(launch.operands) - 1)
    blocks = Binary("max", 1, Binary("ceil_div", count, BLOCK))
    call = TemplateCall(0, (blocks, 1, 1), (*ends, ValueArgument(count)))
    return replace(launch, kernels={target: call})


class AddingDriver(FakeDriver):
    """`wrong_replays`: the second node of a graph then adds 2."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = (8, 8, 4)
        self.wrong_replays = False

    def launch(self, config: tuple[LaunchShape, bool, str], function: str, parameters: int) -> None:
        if function != "add":
            super().launch(config, function, parameters)
            return
        shape, overlap, _ = config
        self._do(f"launch {shape.grid[0]} {'early' if overlap else 'full'}")
        self._add(_values(parameters))

    def add_kernel(
        self, graph: list[Any], shape: LaunchShape, call: tuple[str, int], before: Sequence[int], early: Sequence[bool]
    ) -> int:
        self._do("add_kernel")
        graph.append((shape.grid[0], _values(call[1])))
        return len(graph) - 1

    def replay(self, executable: tuple[Any, ...], stream: str) -> None:
        self._do(f"replay {' '.join(str(blocks) for blocks, _ in executable)}")
        for number, (_, values) in enumerate(executable, 1):
            self._add(values, 2 if self.wrong_replays and number == 2 else 1)

    def _add(self, values: Values, amount: int = 1) -> None:
        self._catch_up()
        x, y, count = values
        self._at(y, 4 * count).view(np.float32)[:] = self._at(x, 4 * count).view(np.float32) + np.float32(amount)


def _values(parameters: int) -> Values:
    """What the driver would copy."""
    x, y, count = (ctypes.c_uint64 * 3).from_address(parameters)
    pointers = [ctypes.c_uint64.from_address(place).value for place in (x, y)]
    return pointers[0], pointers[1], ctypes.c_int32.from_address(count).value
