"""What led to a launch being dynamic: launch <- ONNX node <- value or size <- who is at the bottom of it?

The plan carries a chain of words for each reason. Here every step is given its kind, the debug map adds the ONNX node
where the words leave it out, and the chain is led on to what a person can change: a model input, an attribute, a
library or the caller.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hjgc.plan_format import DebugMap
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import LOGITS_PROCESSOR, is_function_name
from hjgc.plan_format.reasons import Reason, ReasonCode
from hjgc.plan_format.structs import DynamicSegment, HostCall, IslandCall, Launch, LaunchDebug, LibraryCall, Phase, Plan

Kind = Literal["launch", "onnx_node", "cause", "value", "size", "model_input", "attribute", "library", "caller"]
ROOTS: tuple[Kind, ...] = ("model_input", "attribute", "library", "caller")
"""What a chain ends in: whatever can be changed from outside of the plan."""
KIND_WORDS: dict[Kind, str] = {
    "launch": "launch",
    "onnx_node": "ONNX node",
    "cause": "since",
    "value": "value",
    "size": "size",
    "model_input": "model input",
    "attribute": "attribute",
    "library": "library",
    "caller": "the caller's",
}
LOOK_BACK = 256
"""How many launches before one that stands for no node its value may have been made: of a large plan that names none,
more would take minutes."""
SPELT: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"ONNX node (.+)", re.DOTALL), "onnx_node"),
    (re.compile(r"ONNX value (.+)", re.DOTALL), "value"),
    (re.compile(r"since (.+)", re.DOTALL), "cause"),
    (re.compile(r"the caller's (function .+)", re.DOTALL), "caller"),
    (re.compile(rf"the request's ({LOGITS_PROCESSOR})"), "caller"),
)
"""How the compiler writes the steps of a chain."""


@dataclass(frozen=True)
class Link:
    """One step of a chain."""

    kind: Kind
    name: str


@dataclass(frozen=True)
class Cause:
    """Why a launch is dynamic. `launch` is the one that the reason is given for: a launch without one of its own is
    dynamic because of another in its segment."""

    number: int
    launch: int
    code: ReasonCode
    chain: tuple[Link, ...]


@dataclass(frozen=True)
class View:
    """A phase with what the debug map says about its launches; nothing if it was stripped."""

    plan: Plan
    phase: Phase
    debug: Sequence[LaunchDebug]

    def nodes(self, number: int) -> tuple[str, ...]:
        """The ONNX nodes that a launch stands for."""
        return self.debug[number].nodes if self.debug else ()


def view(plan: Plan, phase: Phase, debug: DebugMap | None) -> View:
    entries = () if debug is None else debug.phases
    return View(plan, phase, next((entry.launches for entry in entries if entry.phase == phase.name), ()))


def causes(seen: View, segment: DynamicSegment, numbers: Iterable[int]) -> tuple[Cause, ...]:
    """One a reason for each of these launches of the segment, in order."""
    given: dict[int, list[Reason]] = {}
    for reason in sorted(segment.reasons, key=lambda reason: reason.launch):
        given.setdefault(reason.launch, []).append(reason)
    return tuple(cause for number in numbers for cause in _of_launch(seen, given, tuple(given), number))


def _of_launch(
    seen: View, given: Mapping[int, Sequence[Reason]], launches: Sequence[int], number: int
) -> Iterator[Cause]:
    """`launches` are those that reasons are given for, rising."""
    if number in given:
        for reason in given[number]:
            yield Cause(number, number, reason.code, _chain(seen, reason))
        return
    place = bisect_left(launches, number)
    nearest = given[min(launches[max(0, place - 1) : place + 1], key=lambda other: abs(other - number))][0]
    launch = Link("launch", seen.phase.launches[number].name)
    yield Cause(number, nearest.launch, nearest.code, (launch, *_chain(seen, nearest)))


def _chain(seen: View, reason: Reason) -> tuple[Link, ...]:
    """Of a launch with a reason of its own: from the launch to a root."""
    launch = seen.phase.launches[reason.launch]
    middle = [_link(seen, reason, step) for step in reason.chain]
    if middle and middle[0].kind == "launch":
        middle = middle[1:]
    if all(link.kind != "onnx_node" for link in middle):
        middle = [*_node(seen, reason.launch), *middle]
    root = next((link for link in middle if link.kind in ROOTS), None) or _root(seen.plan, launch, reason, middle)
    return (Link("launch", launch.name), *(link for link in middle if link.kind not in ROOTS), root)


def _link(seen: View, reason: Reason, step: str) -> Link:
    """A step as the compiler spells it, or a name that the plan knows; else a value."""
    launch = seen.phase.launches[reason.launch]
    for pattern, kind in SPELT:
        if (found := pattern.fullmatch(step)) is not None:
            return Link(kind, found[1])
    if step == launch.name:
        return Link("launch", step)
    if step in seen.nodes(reason.launch):
        return Link("onnx_node", step)
    if reason.code is ReasonCode.UNBOUNDED_SIZE:
        return Link("size", step)
    callbacks = (kernel.callback for kernel in launch.kernels.values() if isinstance(kernel, HostCall))
    return _caller(step) if step in callbacks else Link("value", step)


def _node(seen: View, number: int) -> list[Link]:
    """The ONNX node of a launch; of one that stands for none, the node whose value it works on."""
    operands = seen.phase.launches[number].operands
    read = {(o.space, o.index) for o in operands if o.space == "buffer" or o.access == "read_write"}
    for before in range(number, max(-1, number - LOOK_BACK), -1):
        made = {(o.space, o.index) for o in seen.phase.launches[before].operands if o.access != "read"}
        if seen.nodes(before) and (before == number or read & made):
            return [Link("onnx_node", seen.nodes(before)[0])]
    return []


def _root(plan: Plan, launch: Launch, reason: Reason, steps: Sequence[Link]) -> Link:
    """What is behind a chain whose words stop short of it."""
    for kernel in launch.kernels.values():
        if isinstance(kernel, HostCall):
            return _caller(kernel.callback)
        if isinstance(kernel, LibraryCall):
            return Link("library", f"{kernel.library} {kernel.routine}")
        if isinstance(kernel, IslandCall) and reason.code is ReasonCode.NO_TEMPLATE:
            return Link("library", f"ONNX Runtime, since no launch of hjgc {plan.producer.hjgc} computes it")
    named = [link.name for link in steps if link.kind != "cause"]
    last = named[-1] if named else launch.name
    match reason.code:
        case ReasonCode.UNBOUNDED_SIZE:
            return Link("model_input", f"the one with an axis {last}")
        case ReasonCode.DATA_DEPENDENT_SHAPE | ReasonCode.DATA_DEPENDENT_ADDRESS:
            return Link("model_input", f"the values that {last} is computed from")
        case ReasonCode.HOST_CONTROL_FLOW:
            return Link("attribute", f"the branches or the body of {last}")
        case ReasonCode.LIBRARY_NOT_CAPTURABLE | ReasonCode.NO_TEMPLATE:
            targets = ", ".join(plan.targets)
            return Link("library", f"the kernel templates of hjgc {plan.producer.hjgc} for {launch.op} on {targets}")
        case ReasonCode.HOST_TYPE:
            return Link("model_input", f"the type of {last}")
        case ReasonCode.RANDOM:
            return Link("attribute", f"what {last} draws")
        case ReasonCode.HOST_READ if all_ops()[launch.op].island:
            return Link("model_input", f"the values that {last} is computed from")
        case ReasonCode.HOST_READ:
            return _caller(all_ops()[launch.op].callback or "reading of the result")


def _caller(callback: str) -> Link:
    return Link("caller", f"function {callback!r}" if is_function_name(callback) else callback)
