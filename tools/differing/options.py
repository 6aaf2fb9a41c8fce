"""Which options were given another value, and which only follow from something else that changed?

A plan records every option with its value, given or not. One that is at its default on both sides differs because of
what the default is made from: the prompts of a context, the element type of targets and checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hjgc.plan_format.structs import Plan

MOST_PROMPT = 512
"""The longest prompt that graphs are built for where no option says otherwise."""
HALVES = ("float16", "bfloat16")


def changed_options(a: Plan, b: Plan) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of those that were given another value, and what each of the others follows from."""
    one, other = a.producer.options, b.producer.options
    names = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    follows = {name: why for name in names if (why := _follows(name, names, a, b))}
    given = [name for name in names if name not in follows]
    return (*given, *_digest_option(a, b)), follows


def _follows(name: str, changed: list[str], a: Plan, b: Plan) -> str:
    """What else that changed explains this option; empty if nothing does."""
    if name == "prompt" and "context" in changed and all(_is_default_prompt(plan) for plan in (a, b)):
        return "option context"
    if name == "dtype" and all(plan.producer.options.get(name) == _default_dtype(plan) for plan in (a, b)):
        return "option targets" if "targets" in changed else "what the weights are stored as"
    return ""


def _is_default_prompt(plan: Plan) -> bool:
    options = plan.producer.options
    context = options.get("context", "")
    short = f"1:{min(MOST_PROMPT, int(context))}" if context.isdecimal() else ""
    return options.get("prompt") in (f"1:{MOST_PROMPT}", short)


def _default_dtype(plan: Plan) -> str:
    """float32 on the CPU alone, else the type that the largest tensor is stored as, or float16."""
    if all(target == "cpu" for target in plan.targets):
        return "float32"
    stored: Counter[str] = Counter()
    for weight in plan.weights:
        for source in weight.sources:
            stored[source.dtype] = max(stored[source.dtype], source.length)
    largest = max(stored, key=lambda dtype: stored[dtype], default="")
    return largest if largest in HALVES else "float16"


def _digest_option(a: Plan, b: Plan) -> Iterator[str]:
    """`--digest` leaves no other trace than the digests of files that are otherwise the same."""
    files = {file.name: file for file in b.files}
    for file in a.files:
        other = files.get(file.name)
        if other is not None and other.bytes == file.bytes and (file.sha256 is None) != (other.sha256 is None):
            yield "digest"
            return
