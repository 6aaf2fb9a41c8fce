"""What is said of a launch and of a segment where a viewer that is not ours shows them, as names and texts?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import DynamicSegment, Operand, Phase, Plan, Segment
from hjgc.plan_format.text import operand_name
from hjgc.tools.explaining.chains import KIND_WORDS, Cause, View, causes
from hjgc.tools.explaining.nodes import kernels
from hjgc.tools.explaining.spending import spending
from hjgc.tools.prediction import Chip

Reasons = Mapping[int, Sequence[str]]


def verdict(segment: Segment) -> str:
    return "dynamic" if isinstance(segment, DynamicSegment) else "static"


def reasons(seen: View, segment: Segment) -> Reasons:
    """Why each launch of a dynamic segment is dynamic, a sentence a reason; of a static one nothing."""
    found: dict[int, list[str]] = {}
    if isinstance(segment, DynamicSegment):
        for cause in causes(seen, segment, segment.launches):
            found.setdefault(cause.number, []).append(_sentence(cause))
    return found


def _sentence(cause: Cause) -> str:
    return f"{cause.code.sentence}: " + " <- ".join(f"{KIND_WORDS[link.kind]} {link.name}" for link in cause.chain)


def about_segment(seen: View, segment: Segment, why: Reasons, chip: Chip | None) -> dict[str, str]:
    """Verdict and costs; then why, or for which requests there are graphs."""
    about = {"verdict": verdict(segment), "launches": f"{len(segment.launches)}"}
    about |= costs(seen.plan, seen.phase, segment.launches, chip)
    if isinstance(segment, DynamicSegment):
        return about | {"why": "\n".join(dict.fromkeys(sentence for found in why.values() for sentence in found))}
    buckets = ", ".join(map(str, segment.key.buckets))
    return about | {"graphs": f"for up to {buckets} rows" if segment.key.sizes else "one for every request"}


def costs(plan: Plan, phase: Phase, numbers: Sequence[int], chip: Chip | None) -> dict[str, str]:
    """Of one call of the rows and cached tokens that costs of the phase are given for."""
    spent = spending(plan, phase, numbers, chip)
    known = {"flops": f"{spent.flops}", "bytes": f"{spent.bytes}"}
    known["costs are for"] = f"{spent.rows} rows after {spent.start} cached tokens"
    copied = {"bytes to the host": spent.to_host, "bytes to the device": spent.to_device}
    known |= {name: f"{amount}" for name, amount in copied.items() if amount}
    return known | ({} if spent.seconds is None else {"predicted us": f"{spent.seconds * 1e6:.1f}"})


def kernel_texts(plan: Plan, phase: Phase, number: int) -> list[str]:
    """Of a launch, one for each target and range of rows: `sm_90 up to 8 rows: template linear (BLOCK 64)`."""
    return list(_kernels(kernels(plan, phase, number)))


def _kernels(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for target, calls in found.items():
        for call in calls:
            rows = f" up to {call['rows']} rows" if call.get("rows") else ""
            axes = ", ".join(f"{name} {value}" for name, value in call.get("axes", {}).items())
            what = call.get("template") or call.get("callback") or call.get("routine") or ""
            yield f"{target}{rows}: {call['type']} {what}{f' ({axes})' if axes else ''}".rstrip()


def described(plan: Plan, phase: Phase, operand: Operand) -> str:
    """`weight: layers.0.o.weight float16[64, 64]`, and whether it is written."""
    name = f"{operand.role}: {operand_name(plan, phase, operand.space, operand.index)}"
    if operand.space == "parameters":
        return name
    written = "" if operand.access == "read" else ", written"
    return f"{name} {shape(plan, phase, operand)}{written}"


def shape(plan: Plan, phase: Phase, operand: Operand) -> str:
    """`float16[tokens, 64]` of anything but the parameter block."""
    tables = {"buffer": phase.buffers, "weight": plan.weights, "constant": plan.constants, "state": plan.states}
    entry = tables[operand.space][operand.index]
    return f"{entry.dtype}[{', '.join(map(spell, entry.shape))}]"
