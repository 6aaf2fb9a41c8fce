"""Which words on bench's command line stand for what, and which cannot be measured?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from hjgc.plan_format.errors import InputError
from hjgc.tools.benching.settings import Settings
from hjgc.tools.benching.systems import MODES, PEERS

if TYPE_CHECKING:
    from hjgc.plan_format.structs import Plan

CPU_LENGTHS = (10, 50, 100, 200)
DEVICE_LENGTHS = (10, 17, 33, 50, 65, 100, 129, 200, 257, 300, 400, 500, 511)
"""Round ones, and those that buckets and tiles like least."""
DEVICE_CONTEXTS = (16, 128, 512, 1024, 2048, 4000)
CPU_REPEAT, DEVICE_REPEAT, DEVICE_COLD = 5, 100, 2
LEAST_DECODED = 1
"""Further tokens of each answer on a GPU, whatever was asked for: nothing stays launched ahead of the next request."""


def numbers(words: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between them, each once."""
    try:
        found = tuple(dict.fromkeys(int(word) for word in words.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"expected whole numbers, say 10,50,100, found {words!r}")
    return found


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(words: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(word for word in words.split(",") if word))
        if unknown := [name for name in found if name not in known]:
            listed = f"{', '.join(known[:-1])} or {known[-1]}"
            raise click.BadParameter(f"expected {listed} with commas between them, found {unknown[0]!r}")
        return found

    return parse


peer_names = _names(PEERS)
_mode_names = _names((*MODES, "both"))


def modes(words: str) -> tuple[str, ...]:
    """`both` stands for plain and graph."""
    names = [part for name in _mode_names(words) for part in (("plain", "graph") if name == "both" else (name,))]
    if not names:
        raise click.BadParameter(f"expected at least one of {', '.join(MODES)}, found none")
    return tuple(dict.fromkeys(names))


def settings(
    plan: Plan,
    *,
    device: bool,
    lengths: tuple[int, ...] | None,
    contexts: tuple[int, ...] | None,
    decode: int,
    repeat: int | None,
    threads: int,
    seed: int,
    cold: int | None,
    capturing: int | None,
    rest: float | None,
    launches: bool,
) -> Settings:
    """What nobody said is filled in with what fits the plan. Raises InputError for what does not fit it."""
    if not device:
        given = {"--contexts": contexts, "--cold": cold, "--capturing": capturing, "--rest": rest}
        _check_cpu({**given, "--launches": launches or None})
    context, vocabulary = plan.model.context, plan.model.vocab_size
    usual = fitting(DEVICE_LENGTHS if device else CPU_LENGTHS, context - max(decode, LEAST_DECODED))
    if lengths is None:
        lengths = usual if device and usual else CPU_LENGTHS
    _check_fit("--lengths", lengths, max(decode, LEAST_DECODED) if device else decode, context)
    if not device:
        return Settings(lengths, decode, repeat or CPU_REPEAT, threads, seed, vocabulary)
    if contexts is None:
        contexts = fitting(DEVICE_CONTEXTS, context - decode) if decode else ()
    elif not decode:
        raise InputError("--contexts", "expected tokens to decode there, found --decode 0", next_step="use --decode 64")
    _check_fit("--contexts", contexts, decode, context)
    return Settings(
        lengths,
        decode,
        repeat or DEVICE_REPEAT,
        threads,
        seed,
        vocabulary,
        contexts,
        cold=DEVICE_COLD if cold is None else cold,
        capturing=capturing or 0,
        rest=rest or 0.0,
        launches=launches,
    )


def fitting(sizes: Sequence[int], limit: int) -> tuple[int, ...]:
    return tuple(size for size in sizes if size <= limit)


def _check_fit(option: str, sizes: Sequence[int], decode: int, context: int) -> None:
    for size in sizes:
        if size + decode > context:
            problem = f"expected prompt and answer within the plan's context of {context} tokens"
            mend = "use shorter ones, or a smaller --decode"
            raise InputError(option, f"{problem}, found {size} + {decode}", next_step=mend)


def _check_cpu(given: dict[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            problem = "expected a plan measured on a GPU, found one measured on the CPU"
            raise InputError(option, problem, next_step=f"leave {option} out, or add --device cuda")
