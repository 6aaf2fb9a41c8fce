"""What may a user choose about a plan?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hjgc.compiler.build import TARGETS
from hjgc.plan_format.chips import PORTABLE
from hjgc.plan_format.errors import InputError

ComputeDType = Literal["float32", "float16", "bfloat16"]
COMPUTE_DTYPES = ("float32", "float16", "bfloat16")
DEFAULT_CONTEXT = 4096
DEFAULT_PROMPT = 512
DEFAULT_SIZE = (0, 512)
"""Of an axis that a function's inputs leave open."""
MOST_SIZE = 1 << 31
MOST_PROMPT = 1 << 16
"""Rows that GPU kernels take at a time."""


@dataclass(frozen=True)
class Options:
    """`prompt`: the range of prompt lengths to build graphs for, in tokens; longer prompts run in chunks.
    `context`: prompt and answer together; None takes the model's own, at most 4096. `dtype`: of weights, arithmetic and
    cache; None takes float32 on the CPU and the checkpoint's on a GPU. `targets` has the portable one for GPUs, unless
    the user left it out. `sizes`: (name, low, high) of the axes that a function leaves open."""

    targets: tuple[str, ...] = ("cpu",)
    prompt: tuple[int, int] = (1, DEFAULT_PROMPT)
    context: int | None = None
    dtype: ComputeDType | None = None
    digest: bool = False
    sizes: tuple[tuple[str, int, int], ...] = ()


def check_options(
    targets: tuple[str, ...],
    prompt: tuple[int, int] | None,
    context: int | None,
    dtype: str | None,
    digest: bool,
    portable: bool = True,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Options:
    """Options, or InputError that names the one that makes no sense."""
    for target in targets:
        if target != "cpu" and target not in TARGETS:
            known = ", ".join(str(number) for name, number in TARGETS.items() if name != PORTABLE)
            raise InputError("--target", f"expected cpu or sm_NN, found {target!r}", next_step=f"NN is one of {known}")
    if not targets or len(set(targets)) != len(targets):
        raise InputError("--target", f"expected each target once, found {', '.join(targets) or 'none'}")
    if context is not None and context < 2:
        raise InputError("--context", f"expected at least 2 tokens, found {context}")
    low, high = prompt = prompt or (1, min(DEFAULT_PROMPT, context or DEFAULT_PROMPT))
    if not 1 <= low <= high:
        raise InputError("--prompt", f"expected LOW:HIGH with 1 <= LOW <= HIGH, found {low}:{high}")
    if context is not None and high > context:
        raise InputError("--prompt", f"expected at most the context of {context}, found {high}")
    if context is not None and high > MOST_PROMPT and any(target != "cpu" for target in targets):
        problem = f"expected at most {MOST_PROMPT} tokens at a time on a GPU, found {high}"
        raise InputError("--prompt", problem, next_step="say less: longer prompts run in chunks")
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise InputError("--dtype", f"expected one of {', '.join(COMPUTE_DTYPES)}, found {dtype!r}")
    if portable and PORTABLE not in targets and any(target.startswith("sm_") for target in targets):
        targets = (*targets, PORTABLE)
    for name, (least, most) in (sizes or {}).items():
        if not 0 <= least <= most <= MOST_SIZE:
            raise InputError("--size", f"expected {name}=LOW:HIGH with 0 <= LOW <= HIGH, found {least}:{most}")
    ranges = tuple((name, *sizes[name]) for name in sorted(sizes)) if sizes else ()
    return Options(targets, prompt, context, dtype, digest, ranges)
