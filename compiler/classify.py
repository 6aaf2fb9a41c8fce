"""Which steps may be captured, and for those that may not, why?"""

from __future__ import annotations

from dataclasses import dataclass

from hjgc.compiler.program import Program, Step
from hjgc.plan_format import sizes
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.reasons import ReasonCode


@dataclass(frozen=True)
class Static:
    """May be captured: one graph for each value of the `key` sizes; the `device` sizes are read by the kernel."""

    key: tuple[str, ...]
    device: tuple[str, ...]


@dataclass(frozen=True)
class Dynamic:
    """Must run on its own: why, and the chain from the step to what causes it, nearest first."""

    code: ReasonCode
    chain: tuple[str, ...]


@dataclass(frozen=True)
class Island:
    """Must run on its own, for each of several causes."""

    causes: tuple[Dynamic, ...]


Verdict = Static | Dynamic | Island


def classify(program: Program) -> tuple[Verdict, ...]:
    """One verdict a step, in order."""
    return tuple(_judge(program, step) for step in program.steps)


def _judge(program: Program, step: Step) -> Verdict:
    if all_ops()[step.op].island:
        return Island(tuple(Dynamic(code, (step.name, *chain)) for code, chain in step.causes))
    if all_ops()[step.op].host:
        return Dynamic(ReasonCode.HOST_READ, _host_chain(program, step))
    declared = {size.name: size for size in program.sizes}
    used = frozenset[str]().union(*(sizes.names(axis) for tensor in step.operands.values() for axis in tensor.shape))
    unbounded = sorted(used - declared.keys())
    if unbounded:
        return Dynamic(ReasonCode.UNBOUNDED_SIZE, (step.name, *step.nodes[:1], *unbounded))
    reads_block = "parameters" in step.operands
    device = tuple(size.name for size in program.sizes if size.lives == "device" and reads_block)
    return Static(tuple(size.name for size in program.sizes if size.lives == "key"), device)


def _host_chain(program: Program, step: Step) -> tuple[str, ...]:
    """The step, the ONNX node it is or the ONNX value it needs on the host, and whose function asks for it."""
    if step.op == "host_function":
        return (step.name, f"ONNX node {step.nodes[0]}", f"the caller's function {step.callback!r}")
    maker = next((other for other in program.steps if "logits" in other.values), None)
    value = () if maker is None else (f"ONNX value {maker.values['logits']}",)
    return (step.name, *value, "the request's logits_processor")


def describe(program: Program, verdicts: tuple[Verdict, ...]) -> str:
    """The dump of this stage."""
    lines = [f"phase {program.phase}"]
    for step, verdict in zip(program.steps, verdicts, strict=True):
        lines.append(f"  {step.name}: {_verdict(verdict)}")
    return "\n".join(lines) + "\n"


def _verdict(verdict: Verdict) -> str:
    if isinstance(verdict, Static):
        graphs = f"a graph for each bucket of {' and '.join(verdict.key)}" if verdict.key else "one graph"
        reads = f", reads {' and '.join(verdict.device)} on the device" if verdict.device else ""
        return f"static, {graphs}{reads}"
    causes = verdict.causes if isinstance(verdict, Island) else (verdict,)
    return "dynamic, " + "; ".join(f"{cause.code}: {' <- '.join(cause.chain)}" for cause in causes)
