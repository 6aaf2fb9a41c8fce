"""How does a GPU test get a plan file, built where there is no GPU?

`chain_plan(kernel)` is a phase `chain` of RMSNorms one after the other, over 1 to 64 rows; run as a program, this file
builds the kernel and writes `chain.hjg` with its weights, and `sm_80.cubin`, into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import numpy as np

from hjgc.compiler.build import Built, build
from hjgc.compiler.kernels import template, template_digest
from hjgc.plan_format import codec, ledger
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.plan_format.sizes import Size, SizeDeclaration
from hjgc.plan_format.structs import (
    FORMAT_VERSION,
    Buffer,
    CaptureKey,
    DTypes,
    Edge,
    Launch,
    Model,
    Operand,
    Phase,
    Plan,
    Producer,
    Schedule,
    Source,
    StaticSegment,
    Template,
    Weight,
    WeightFile,
    parameter_block,
)

EdgeKind = Literal["full", "pdl"]
ROWS, COLUMNS, EPSILON = 64, 4096, 1e-5
AXES = {"columns": COLUMNS, "dtype": "float16", "weight_dtype": "float16", "warps": 4, "pdl": True}
WEIGHTS = "weights.bin"
ROW_BYTES = 2 * COLUMNS


def norm_weights(launches: int) -> np.ndarray:
    """[launches, COLUMNS] float16 around 1, the same every time."""
    noise = np.random.default_rng(11).standard_normal((launches, COLUMNS))
    return (1 + 0.25 * noise).astype(np.float16)


def chain_plan(kernel: Built, file: WeightFile, launches: int = 3, edge: EdgeKind = "pdl") -> Plan:
    """`launches` norms, each of what the one before wrote; its code alone fills the cubin section."""
    weights = tuple(_weight(i) for i in range(launches))
    phase = _phase(kernel.target, launches, edge)
    arena = sum(buffer.bytes for buffer in phase.buffers)
    return Plan(
        format=FORMAT_VERSION,
        features=(),
        producer=Producer("test", "by hand", "0" * 64, 20, {}),
        model=Model("chain", "none", 0, ROWS, launches),
        targets=(kernel.target,),
        dtypes=DTypes("float16", "float16", "float32", "float16", "float32"),
        files=(file,),
        weights=weights,
        constants=(),
        states=(),
        parameters=parameter_block(),
        arena_bytes=arena,
        phases=(phase,),
        templates=(Template("rms_norm", template_digest("rms_norm"), tuple(sorted(kernel.axes))),),
        variants=(kernel.variant(template=0, offset=0),),
        ledger=ledger.make_ledger(weights, arena, (), (), parameter_block(), (phase,)),
    )


def _weight(index: int) -> Weight:
    source = Source(0, index * ROW_BYTES, ROW_BYTES, "float16", (COLUMNS,))
    return Weight(f"norm{index}", "float16", (COLUMNS,), ROW_BYTES, (source,))


def _phase(target: str, launches: int, edge: EdgeKind) -> Phase:
    """Buffer 0 is the input, buffer `launches` the output; launch i reads buffer i and writes buffer i + 1."""
    kernel = template("rms_norm")
    rows = Size("tokens")
    steps: list[Launch] = []
    buffers: list[Buffer] = []
    for i in range(launches + 1):
        first, last = max(0, i - 1), min(i, launches - 1)
        buffers.append(Buffer(f"x{i}", "float16", (rows, COLUMNS), i * ROWS * ROW_BYTES, ROWS * ROW_BYTES, first, last))
    for i in range(launches):
        operands = (
            Operand("x", "buffer", i, "read"),
            Operand("weight", "weight", i, "read"),
            Operand("y", "buffer", i + 1, "write"),
        )
        call = kernel.call(0, AXES, operands, {"M": rows, "H": COLUMNS})
        steps.append(Launch(f"norm{i}", "rms_norm", operands, {target: call}, {"epsilon": EPSILON}))
    numbers = tuple(range(launches))
    return Phase(
        name="chain",
        entry="tensor",
        logits_rows="none",
        sizes=(SizeDeclaration("tokens", 1, ROWS, "key"), SizeDeclaration("length", 1, ROWS, "device")),
        buffers=tuple(buffers),
        launches=tuple(steps),
        edges=tuple(Edge(i, i + 1, edge) for i in range(launches - 1)),
        schedules=(Schedule("default", (StaticSegment(numbers, CaptureKey(("tokens",), (2, 4, 8, 16, 32, 64))),)),),
        numerics=f"rms_norm/{target}",
        inputs=(0,),
        outputs=(launches,),
    )


def write_chain(folder: Path, launches: int = 3, edge: EdgeKind = "pdl") -> Path:
    """Build the kernel for sm_90 and write the plan with its weights; the plan's path."""
    kernel = build("rms_norm", AXES, "sm_90")
    (folder / WEIGHTS).write_bytes(norm_weights(launches).tobytes())
    path = folder / "chain.hjg"
    plan = chain_plan(kernel, fingerprint(folder / WEIGHTS, WEIGHTS), launches, edge)
    codec.save(path, plan, sections={"cubin": kernel.cubin})
    return path


def write_foreign_code(folder: Path) -> None:
    """The same kernel for another chip, `sm_80.cubin`: what an sm_90 device must refuse."""
    (folder / "sm_80.cubin").write_bytes(build("rms_norm", AXES | {"pdl": False}, "sm_80").cubin)


if __name__ == "__main__":
    write_chain(Path(sys.argv[1]))
    write_foreign_code(Path(sys.argv[1]))
