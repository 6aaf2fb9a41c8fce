"""Which steps does nobody need any more?"""

from __future__ import annotations

from collections.abc import Iterable

from hjgc.compiler.function.fusion.flow import Flow, Workshop, buffer_of
from hjgc.compiler.program import Step
from hjgc.plan_format.ops import all_ops


def drop_unread(flow: Flow, workshop: Workshop) -> Iterable[Step]:
    """Without steps whose results nothing reads; islands stay, for what they may say."""
    del workshop
    needed = set[str]()
    left: list[Step] = []
    for step in reversed(flow.steps):
        written = [tensor for role, tensor in step.operands.items() if role[0] == "y"]
        unread = all(buffer_of(y) not in needed and not flow.is_kept(y) for y in written)
        if unread and not all_ops()[step.op].island:
            continue
        left.append(step)
        needed |= {buffer_of(x) for role, x in step.operands.items() if role[0] == "x"}
    return tuple(reversed(left))
