"""What differs in what launches call: ranges of rows, templates, axes, grids, and the code behind them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hjgc.plan_format.sizes import spell
from hjgc.plan_format.structs import (
    HostCall,
    IslandCall,
    Kernel,
    Launch,
    LibraryCall,
    Plan,
    RowsCall,
    TemplateCall,
    template_calls,
)
from hjgc.tools.differing.sides import Change
from hjgc.tools.differing.tables import Value, compare

ALL_ROWS = 0
"""The range of a kernel that makes one call for any number of rows."""

Call = tuple[str, dict[str, Value]]
"""What is called, and with which axes and how many blocks."""


def _calls(plan: Plan, kernel: Kernel) -> dict[int, Call]:
    """By the most rows that each serves."""
    match kernel:
        case RowsCall():
            return {entry.high: _call(plan, entry.call) for entry in kernel.ranges}
        case TemplateCall():
            return {ALL_ROWS: _call(plan, kernel)}
        case IslandCall():
            nodes = ", ".join(plan.islands[kernel.island].nodes)
            return {ALL_ROWS: ("ONNX Runtime", {"nodes": nodes})}
        case HostCall():
            return {ALL_ROWS: (f"the caller's {kernel.callback}", {})}
        case LibraryCall():
            return {ALL_ROWS: (f"{kernel.library} {kernel.routine} {kernel.algorithm}", {})}
        case _:
            return {ALL_ROWS: ("reference", {})}


def _call(plan: Plan, call: TemplateCall) -> Call:
    variant = plan.variants[call.variant]
    grid = " x ".join(spell(size) for size in call.grid)
    built = "built ahead" if variant.built is not None else "not built ahead"
    return plan.templates[variant.template].name, {**variant.axes, "grid": grid, "code": built}


def compare_kernels(item: str, a: Plan, one: Launch, b: Plan, other: Launch) -> Iterator[Change]:
    """Of the targets that both have: those that only one has are a change of the targets."""
    for target in [target for target in one.kernels if target in other.kernels]:
        yield from _kernels(item, target, _calls(a, one.kernels[target]), _calls(b, other.kernels[target]))


def _kernels(item: str, target: str, before: Mapping[int, Call], after: Mapping[int, Call]) -> Iterator[Change]:
    """Where both have a range, what differs in its call; axes that are the same are left out."""
    ranges = [", ".join(map(str, calls)) for calls in (before, after)]
    yield from compare("variants", item, {f"{target} rows": ranges[0]}, {f"{target} rows": ranges[1]})
    for rows in [rows for rows in before if rows in after]:
        (name, axes), (other, others) = before[rows], after[rows]
        field = f"{target} {name}" if rows == ALL_ROWS else f"{target} {name} up to {rows} rows"
        if name != other:
            yield Change("variants", item, field, name, other)
        elif axes != others:
            differing = [axis for axis in dict.fromkeys((*axes, *others)) if axes.get(axis) != others.get(axis)]
            yield Change("variants", item, field, *(_axes(table, differing) for table in (axes, others)))


def _axes(axes: Mapping[str, Value], names: list[str]) -> str:
    return " ".join(f"{name}={axes.get(name)}" for name in names)


def compare_code(a: Plan, b: Plan) -> Iterator[Change]:
    """Templates by name; code by template, target and axes, of the variants that both have built."""
    one, other = ({template.name: template.digest for template in plan.templates} for plan in (a, b))
    called = [{plan.templates[v].name for v in _called(plan)} for plan in (a, b)]
    for name in [name for name in one if name in called[0] & called[1]]:
        yield from compare("templates", name, {"digest": one[name][:16]}, {"digest": other[name][:16]})
    codes, others = _codes_of(a), _codes_of(b)
    for item in [item for item in codes if item in others]:
        both = codes[item].keys() & others[item].keys()  # what only one has built is a change of the variant
        yield from compare(
            "code", item, *({name: each[item][name] for name in sorted(both)} for each in (codes, others))
        )


def _called(plan: Plan) -> set[int]:
    """Templates that some launch calls."""
    kernels = [kernel for phase in plan.phases for launch in phase.launches for kernel in launch.kernels.values()]
    return {plan.variants[call.variant].template for kernel in kernels for call in template_calls(kernel)}


def _codes_of(plan: Plan) -> dict[str, dict[str, Value]]:
    """What was built, by what it was built from. The parameters and how they are passed belong to it."""
    codes: dict[str, dict[str, Value]] = {}
    for variant in plan.variants:
        axes = " ".join(f"{name}={value}" for name, value in sorted(variant.axes.items()))
        name = f"{variant.target} {plan.templates[variant.template].name} {axes}"
        codes[name] = {"parameters": ", ".join(variant.parameters), "pdl": variant.pdl}
        if variant.built is not None:
            codes[name] |= {"sha256": variant.built.code.sha256[:16], "threads": variant.built.threads}
    return codes
