"""How does a plan read? One line an entry, the same text for the same plan, so that dumps and golden tests share it."""

from __future__ import annotations

from collections.abc import Iterator

from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import (
    DynamicSegment,
    IslandCall,
    Launch,
    Operand,
    Phase,
    Plan,
    Schedule,
    StaticSegment,
    TemplateCall,
)


def render(plan: Plan) -> str:
    """The whole plan as text."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    model, dtypes, ledger = plan.model, plan.dtypes, plan.ledger
    yield f"plan {plan.format} for {', '.join(plan.targets)}"
    yield (
        f"model {model.name}: {model.architecture}, {model.layers} layers, vocabulary {model.vocab_size}, "
        f"context {model.context}"
    )
    yield f"dtypes weights={dtypes.weights} compute={dtypes.compute} cache={dtypes.cache} logits={dtypes.logits}"
    yield (
        f"ledger weights={ledger.weights} arena={ledger.arena} states={ledger.states} constants={ledger.constants} "
        f"parameters={ledger.parameters} kv_per_token={ledger.kv_per_token} total={ledger.total}"
    )
    for state in plan.states:
        yield f"state {state.name}: {state.kind} {state.dtype} {list(state.shape)}"
    for weight in plan.weights:
        yield f"weight {weight.name}: {weight.dtype} {list(weight.shape)} from {len(weight.sources)}"
    for phase in plan.phases:
        yield from phase_lines(plan, phase)


def phase_lines(plan: Plan, phase: Phase) -> Iterator[str]:
    ranges = ", ".join(f"{size.name} {size.low}..{size.high} ({size.lives})" for size in phase.sizes)
    yield f"phase {phase.name}: {ranges}"
    for ports, word in ((phase.arguments, "takes"), (phase.results, "gives")):
        for port in ports:
            axes = ", ".join("?" if axis is None else spell(axis) for axis in port.shape or ())
            yield f"  {word} {port.name}: {port.type} {'of any shape' if port.shape is None else f'[{axes}]'}"
    for buffer in phase.buffers:
        shape = ", ".join(spell(axis) for axis in buffer.shape)
        place = f"at {buffer.offset}+{buffer.bytes}, launches {buffer.first}..{buffer.last}"
        yield f"  buffer {buffer.name}: {buffer.dtype} [{shape}] {place}"
    for number, launch in enumerate(phase.launches):
        yield f"  {number} {launch_line(plan, phase, launch)}"
    for schedule in phase.schedules:
        yield from schedule_lines(schedule)


def launch_line(plan: Plan, phase: Phase, launch: Launch) -> str:
    """`name = op(role=operand, ...) {attributes} kernels`, what is written marked with `>`."""
    operands = ", ".join(_operand(plan, phase, operand) for operand in launch.operands)
    attributes = " ".join(f"{name}={value}" for name, value in sorted(launch.attributes.items()))
    kernels = " ".join(_kernel(plan, target, kernel) for target, kernel in sorted(launch.kernels.items()))
    return f"{launch.name} = {launch.op}({operands}) {{{attributes}}} {kernels}"


def _operand(plan: Plan, phase: Phase, operand: Operand) -> str:
    mark = "" if operand.access == "read" else ">"
    return f"{mark}{operand.role}={operand_name(plan, phase, operand.space, operand.index)}"


def _kernel(plan: Plan, target: str, kernel: object) -> str:
    if isinstance(kernel, IslandCall):
        return f"{target}:ONNX Runtime {plan.islands[kernel.island].name}"
    if not isinstance(kernel, TemplateCall):
        return f"{target}:{type(kernel).__name__}"
    variant = plan.variants[kernel.variant]
    axes = ",".join(f"{name}={value}" for name, value in sorted(variant.axes.items()))
    grid = ",".join(spell(size) for size in kernel.grid)
    return f"{target}:{plan.templates[variant.template].name}[{axes}]<{grid}>"


def operand_name(plan: Plan, phase: Phase, space: str, index: int) -> str:
    """The name of what an operand refers to."""
    match space:
        case "buffer":
            return phase.buffers[index].name
        case "weight":
            return plan.weights[index].name
        case "constant":
            return plan.constants[index].name
        case "state":
            return plan.states[index].name
        case "value":
            return phase.values[index].name
        case _:
            return "parameters"


def schedule_lines(schedule: Schedule) -> Iterator[str]:
    yield f"  schedule {schedule.name}"
    for segment in schedule.segments:
        span = f"launches {segment.launches[0]}..{segment.launches[-1]} ({len(segment.launches)})"
        yield f"    {_segment(segment, span)}"


def _segment(segment: StaticSegment | DynamicSegment, span: str) -> str:
    if isinstance(segment, StaticSegment):
        key = ", ".join(segment.key.sizes) or "nothing"
        buckets = f", buckets {list(segment.key.buckets)}" if segment.key.buckets else ""
        return f"static {span} keyed by {key}{buckets}"
    reasons = "; ".join(f"{r.code} ({r.code.sentence}): {' <- '.join(r.chain)}" for r in segment.reasons)
    return f"dynamic {span} because {reasons}"
