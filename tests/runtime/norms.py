"""How do tests get a plan of kernels, without building any?

`norms_plan(folder)` is a phase of four norms in a row for 1 to 16 rows, for a chip of any name: edges 0-1 and 2-3 are
`pdl`, 1-2 is full. Its one variant claims to be `CODE`; a cache stands by for copies. `write_plan` writes it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hjgc.plan_format import save
from hjgc.plan_format.fingerprint import fingerprint
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.sizes import Binary, Size, SizeDeclaration
from hjgc.plan_format.structs import (
    FORMAT_VERSION,
    AttributeArgument,
    Buffer,
    BuiltCode,
    CaptureKey,
    CodeReference,
    DTypes,
    Edge,
    Launch,
    Model,
    Operand,
    OperandArgument,
    ParameterArgument,
    Phase,
    Plan,
    Producer,
    Schedule,
    Source,
    State,
    StaticSegment,
    Template,
    TemplateCall,
    ValueArgument,
    Variant,
    Weight,
    parameter_block,
)

ROWS, COLUMNS = 16, 8
CODE = b"not really a cubin"
KINDS = ("pointer", "pointer", "pointer", "pointer", "int32", "float32", "scratch", "scratch")


def write_plan(folder: Path, *, pdl: bool = True, code: bytes = CODE) -> Path:
    """The path of the plan, its weights beside it. `code` is what really lies in the cubin section."""
    save(folder / "plan.hjg", norms_plan(folder, pdl=pdl), sections={"cubin": code})
    return folder / "plan.hjg"


def norms_plan(folder: Path, *, pdl: bool = True, target: str = "sm_90") -> Plan:
    """Writes the weights into `folder`. Without `pdl` neither the kernels nor the edges overlap."""
    np.arange(1, COLUMNS + 1, dtype=np.float32).tofile(folder / "w.bin")
    weights = (Weight("w", "float32", (COLUMNS,), 32, (Source(0, 0, 32, "float32", (COLUMNS,)),)),)
    cache = State("cache", "full_cache", "float32", (2, ROWS + 1, 4), 2 * (ROWS + 1) * 16)
    phase = phase_of_norms(target, "pdl" if pdl else "full")
    arena = sum(buffer.bytes for buffer in phase.buffers)
    axes: dict[str, bool | int | str] = {"pdl": pdl}
    reference = CodeReference("cubin", 0, len(CODE), hashlib.sha256(CODE).hexdigest())
    return Plan(
        format=FORMAT_VERSION,
        features=(),
        producer=Producer("test", "by hand", "0" * 64, 20, {}),
        model=Model("norms", "none", 0, ROWS, 4),
        targets=(target,),
        dtypes=DTypes("float32", "float32", "float32", "float32", "float32"),
        files=(fingerprint(folder / "w.bin", "w.bin"),),
        weights=weights,
        constants=(),
        states=(cache,),
        parameters=parameter_block(),
        arena_bytes=arena,
        phases=(phase,),
        templates=(Template("norm", "0" * 64, tuple(axes)),),
        variants=(Variant(0, target, axes, KINDS, pdl, BuiltCode("norm", 128, 16, reference)),),
        ledger=make_ledger(weights, arena, (cache,), (), parameter_block(), (phase,)),
    )


def phase_of_norms(target: str, edge: Any) -> Phase:
    rows = Size("tokens")
    size = ROWS * COLUMNS * 4
    spans = ((0, 0), (0, 1), (1, 2), (2, 3), (3, 3))
    arguments = (
        *(OperandArgument(i) for i in range(3)),
        ParameterArgument("length"),
        ValueArgument(Binary("mul", rows, 100)),
        AttributeArgument("epsilon"),
    )
    call = TemplateCall(0, (Binary("ceil_div", rows, 4), 1, 1), arguments)
    launches = tuple(
        Launch(
            f"norm{i}",
            "rms_norm",
            (
                Operand("x", "buffer", i, "read"),
                Operand("weight", "weight", 0, "read"),
                Operand("y", "buffer", i + 1, "write"),
            ),
            {target: call},
            {"epsilon": 0.5},
        )
        for i in range(4)
    )
    return Phase(
        name="norms",
        entry="tensor",
        logits_rows="none",
        sizes=(SizeDeclaration("tokens", 1, ROWS, "key"),),
        buffers=tuple(
            Buffer(f"x{i}", "float32", (rows, COLUMNS), i * size, size, *span) for i, span in enumerate(spans)
        ),
        launches=launches,
        edges=(Edge(0, 1, edge), Edge(1, 2), Edge(2, 3, edge)),
        schedules=(Schedule("default", (StaticSegment((0, 1, 2, 3), CaptureKey(("tokens",), (2, 4, 8, 16))),)),),
        numerics="norms",
        inputs=(0,),
        outputs=(4,),
    )
