"""Which launches of a function become one on a GPU: attention, norms with what they normalise, products with what is
made of them, products of the same rows? And which weights stay wide on a CPU?

Each pass takes the steps in order and gives others that mean the same. None is made that a target has no kernel for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hjgc.compiler.function.fusion.attention import fuse_attention
from hjgc.compiler.function.fusion.flow import Flow, Workshop
from hjgc.compiler.function.fusion.norms import fuse_norms
from hjgc.compiler.function.fusion.numbers import inline_numbers
from hjgc.compiler.function.fusion.products import fuse_products
from hjgc.compiler.function.fusion.siblings import merge_siblings
from hjgc.compiler.function.fusion.unread import drop_unread
from hjgc.compiler.function.fusion.wide import widen_weights
from hjgc.compiler.program import Step

Pass = Callable[[Flow, Workshop], Iterable[Step]]
PASSES: tuple[Pass, ...] = (
    inline_numbers, fuse_attention, drop_unread, fuse_norms, fuse_products, merge_siblings
)  # fmt: skip


def fuse_for_gpus(steps: Iterable[Step], kept: Iterable[str], workshop: Workshop) -> tuple[Step, ...]:
    """The steps for GPUs. `kept` are buffers that somebody besides the steps reads."""
    wanted = frozenset(kept)
    for change in PASSES:
        steps = change(Flow(steps, wanted), workshop)
    return tuple(steps)


def keep_wide_for_cpu(steps: Iterable[Step], kept: Iterable[str], workshop: Workshop) -> tuple[Step, ...]:
    """The steps of a plan that only a CPU runs."""
    return tuple(widen_weights(Flow(steps, frozenset(kept)), workshop))
