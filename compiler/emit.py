"""How do the results of the stages become one plan?"""

from __future__ import annotations

from dataclasses import dataclass

from hjgc.compiler.build_variants import DeviceCode
from hjgc.compiler.plan_memory import MemoryPlan
from hjgc.compiler.program import End, Network, Program, Step
from hjgc.plan_format.hazards import schedule_edges
from hjgc.plan_format.ledger import make_ledger
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.structs import (
    ALWAYS,
    FORMAT_VERSION,
    DebugMap,
    Edge,
    Kernel,
    Launch,
    LaunchDebug,
    Model,
    Note,
    Operand,
    Phase,
    PhaseDebug,
    Plan,
    Port,
    Producer,
    Schedule,
    WeightFile,
    parameter_block,
    template_calls,
)


@dataclass(frozen=True)
class CompiledPhase:
    """What the stages found out about one phase."""

    program: Program
    memory: MemoryPlan
    schedules: tuple[Schedule, ...]
    kernels: tuple[dict[str, Kernel], ...]


def emit(
    network: Network,
    phases: tuple[CompiledPhase, ...],
    *,
    producer: Producer,
    model: Model,
    targets: tuple[str, ...],
    files: tuple[WeightFile, ...],
    code: DeviceCode,
) -> Plan:
    """The plan. The same results give the same plan."""
    waits = frozenset(i for i, variant in enumerate(code.variants) if variant.pdl)
    made = tuple(_phase(phase, targets, waits) for phase in phases)
    arena = max(phase.memory.bytes for phase in phases)
    parameters = parameter_block()
    return Plan(
        format=FORMAT_VERSION,
        features=_features(network),
        producer=producer,
        model=model,
        targets=targets,
        dtypes=network.dtypes,
        files=files,
        weights=network.weights,
        constants=network.constants,
        states=network.states,
        parameters=parameters,
        arena_bytes=arena,
        phases=made,
        templates=code.templates,
        variants=code.variants,
        ledger=make_ledger(network.weights, arena, network.states, network.constants, parameters, made),
        islands=network.islands,
    )


def _phase(compiled: CompiledPhase, targets: tuple[str, ...], waits: frozenset[int]) -> Phase:
    program = compiled.program
    index = {buffer.name: i for i, buffer in enumerate(compiled.memory.buffers)}
    chosen = zip(program.steps, compiled.kernels, strict=True)
    launches = tuple(_launch(step, kernels, index) for step, kernels in chosen)
    orders = [[i for segment in schedule.segments for i in segment.launches] for schedule in compiled.schedules]
    return Phase(
        name=program.phase,
        entry="function" if program.function else "token",
        logits_rows="none" if program.function else "last",
        sizes=program.sizes,
        buffers=compiled.memory.buffers,
        launches=launches,
        edges=_edges(orders, compiled.kernels, waits),
        schedules=compiled.schedules,
        numerics=f"{program.phase}/{'+'.join(targets)}/exact-rows",
        inputs=_buffers(program.arguments, index),
        outputs=_buffers(program.results, index),
        values=program.values,
        arguments=tuple(_port(end, index) for end in program.arguments),
        results=tuple(_port(end, index) for end in program.results),
    )


def _buffers(ends: tuple[End, ...], index: dict[str, int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(index[end.tensor.name] for end in ends if end.tensor.space == "buffer"))


def _port(end: End, index: dict[str, int]) -> Port:
    if end.tensor.space == "buffer":
        return Port(end.name, "buffer", index[end.tensor.name], end.type, end.tensor.shape)
    return Port(end.name, "value", end.tensor.index, end.type, end.shape)


def _edges(orders: list[list[int]], kernels: tuple[dict[str, Kernel], ...], waits: frozenset[int]) -> tuple[Edge, ...]:
    """Every launch after the one before it; early, where kernels of both are built to wait by themselves (`waits`)."""
    early = [
        {t for t, kernel in made.items() if any(c.variant in waits for c in template_calls(kernel))} for made in kernels
    ]
    edges = schedule_edges(orders)
    return tuple(Edge(e.before, e.after, "pdl" if early[e.before] & early[e.after] else "full") for e in edges)


def _launch(step: Step, kernels: dict[str, Kernel], buffers: dict[str, int]) -> Launch:
    roles = all_ops()[step.op].ordered(step.operands)
    operands: list[Operand] = []
    for role in roles:
        tensor = step.operands[role.name]
        index = buffers[tensor.name] if tensor.space == "buffer" else tensor.index
        operands.append(Operand(role.name, tensor.space, index, role.access))
    return Launch(step.name, step.op, tuple(operands), kernels, step.attributes)


def _features(network: Network) -> tuple[str, ...]:
    """What a reader must understand."""
    quantised = any(source.blocks is not None for weight in network.weights for source in weight.sources)
    needs = {
        "quantised_sources": quantised,
        "functions": any(program.function for program in network.programs),
        "islands": bool(network.islands),
    }
    return (*ALWAYS, *(name for name, needed in needs.items() if needed))


def emit_debug(programs: tuple[Program, ...], notes: tuple[Note, ...]) -> DebugMap:
    """Which ONNX nodes and values each launch stands for."""
    phases = tuple(
        PhaseDebug(program.phase, tuple(LaunchDebug(step.nodes, step.values) for step in program.steps))
        for program in programs
    )
    return DebugMap(phases, notes)
