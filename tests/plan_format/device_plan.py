"""What does a plan with templates, variants and device code look like, when no compiler is at hand?

`device_plan()` is a phase of RMSNorms in a row for `sm_90` and `sm_100`, over 1 to 32 rows, with pdl edges. Its code is
random bytes: nothing here runs it.
"""

from __future__ import annotations

import hashlib

import numpy as np

from hjgc.plan_format.building import template_digest
from hjgc.plan_format.hazards import schedule_edges
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.sizes import Binary, Expression, Size, SizeDeclaration
from hjgc.plan_format.structs import (
    FORMAT_VERSION,
    Argument,
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
    StaticSegment,
    Template,
    TemplateCall,
    TemplateFile,
    ValueArgument,
    Variant,
    Weight,
    WeightFile,
    parameter_block,
)

ROWS, COLUMNS, LAUNCHES = 32, 128, 5
BUCKETS = (2, 4, 8, 16, 32)
TARGETS = ("sm_90", "sm_100")
CODE_BYTES = 1000
TEXT = b"# helper\n\nTEMPLATE = None\n"
ARGUMENTS: tuple[Argument, ...] = (
    OperandArgument(0),
    OperandArgument(1),
    OperandArgument(2),
    ParameterArgument("length"),
    AttributeArgument("epsilon"),
    ValueArgument(Binary("mul", Size("tokens"), COLUMNS)),
)


def device_sections() -> dict[str, bytes]:
    """The code and the text that go with the plan."""
    return {"cubin": np.random.default_rng(3).bytes(len(TARGETS) * CODE_BYTES), "templates": TEXT}


def device_weights() -> bytes:
    """The bytes of its `norms.bin`."""
    return np.random.default_rng(5).bytes(LAUNCHES * 2 * COLUMNS)


def device_plan() -> Plan:
    data, code = device_weights(), device_sections()["cubin"]
    weights = tuple(_weight(i) for i in range(LAUNCHES))
    phase = _phase()
    arena = sum(buffer.bytes for buffer in phase.buffers)
    return Plan(
        format=FORMAT_VERSION,
        features=("parameter_block",),
        producer=Producer("test", "by hand", "0" * 64, 20, {"dtype": "float16"}),
        model=Model("norms", "none", 0, ROWS, LAUNCHES),
        targets=TARGETS,
        dtypes=DTypes("float16", "float16", "float32", "float16", "float32"),
        files=(WeightFile("norms.bin", len(data), _digest(data), _digest(64 * data)),),  # a block is the file
        weights=weights,
        constants=(),
        states=(),
        parameters=parameter_block(),
        arena_bytes=arena,
        phases=(phase,),
        templates=(_template(),),
        variants=tuple(_variant(i, code) for i in range(len(TARGETS))),
        ledger=make_ledger(weights, arena, (), (), parameter_block(), (phase,)),
    )


def _weight(index: int) -> Weight:
    size = 2 * COLUMNS
    return Weight(f"norm{index}", "float16", (COLUMNS,), size, (Source(0, index * size, size, "float16", (COLUMNS,)),))


def _template() -> Template:
    files = {"helper.py": TEXT[:10], "rms_norm.py": TEXT[10:]}
    texts = (
        TemplateFile("helper.py", 0, 10, _digest(TEXT[:10])),
        TemplateFile("rms_norm.py", 10, len(TEXT) - 10, _digest(TEXT[10:])),
    )
    return Template("rms_norm", template_digest(files), ("columns", "pdl", "warps"), texts)


def _variant(index: int, code: bytes) -> Variant:
    start = index * CODE_BYTES
    reference = CodeReference("cubin", start, CODE_BYTES, _digest(code[start : start + CODE_BYTES]))
    return Variant(
        template=0,
        target=TARGETS[index],
        axes={"columns": COLUMNS, "pdl": True, "warps": 4},
        parameters=("pointer", "pointer", "pointer", "pointer", "float32", "int64", "scratch", "scratch"),
        pdl=True,
        built=BuiltCode("rms_norm", 128, 64, reference, registers=32),
    )


def _phase() -> Phase:
    tokens = Size("tokens")
    size = 2 * ROWS * COLUMNS
    buffers = tuple(
        Buffer(f"x{i}", "float16", (tokens, COLUMNS), i * size, size, max(0, i - 1), min(i, LAUNCHES - 1))
        for i in range(LAUNCHES + 1)
    )
    numbers = tuple(range(LAUNCHES))
    return Phase(
        name="chain",
        entry="tensor",
        logits_rows="none",
        sizes=(SizeDeclaration("tokens", 1, ROWS, "key"), SizeDeclaration("length", 1, ROWS, "device")),
        buffers=buffers,
        launches=tuple(_launch(i, tokens) for i in numbers),
        edges=tuple(Edge(edge.before, edge.after, "pdl") for edge in schedule_edges([numbers])),
        schedules=(Schedule("default", (StaticSegment(numbers, CaptureKey(("tokens",), BUCKETS)),)),),
        numerics="chain",
        inputs=(0,),
        outputs=(LAUNCHES,),
    )


def _launch(number: int, rows: Expression) -> Launch:
    operands = (
        Operand("x", "buffer", number, "read"),
        Operand("weight", "weight", number, "read"),
        Operand("y", "buffer", number + 1, "write"),
    )
    kernels = {target: TemplateCall(i, (rows, 1, 1), ARGUMENTS) for i, target in enumerate(TARGETS)}
    return Launch(f"norm{number}", "rms_norm", operands, {**kernels}, {"epsilon": 1e-5})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
