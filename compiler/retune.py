"""What would a plan be with other axes for some of its variants?

Launches, memory and weights stay as they are; the calls of a changed variant become those of its template with the new
axes. Variants that nothing calls any more are dropped; the code of the others goes over as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hjgc.compiler.build_variants import VariantKey, code_tables, launch_abi
from hjgc.compiler.kernels import template, template_digest, template_names
from hjgc.compiler.kernels.declaration import Axes
from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import PlanError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import bind_axes
from hjgc.plan_format.sizes import Expression
from hjgc.plan_format.structs import Launch, Phase, Plan, TemplateCall, Variant, map_calls, template_calls


@dataclass(frozen=True)
class Retuned:
    """The plan and its sections of code."""

    plan: Plan
    sections: Mapping[str, bytes]


def check_templates(plan: Plan, path: Path) -> None:
    """Raises PlanError where a template of the plan is not the installed one: its variants could not be built again."""
    for i, known in enumerate(plan.templates):
        installed = template_digest(known.name) if known.name in template_names() else None
        if installed != known.digest:
            found = "none of that name" if installed is None else "another"
            problem = f"expected the text of the template {known.name} that is installed, found {found}"
            raise PlanError(
                path, problem, field=f"$.templates[{i}]", next_step="compile the model again with this hjgc"
            )


def with_axes(plan: Plan, number: int, axes: Axes) -> Plan:
    """The plan with one more variant, last, which every call of `variants[number]` calls instead. It is not built."""
    before = plan.variants[number]
    name = plan.templates[before.template].name
    pdl = axes.get("pdl") is True
    added = Variant(before.template, before.target, dict(axes), launch_abi(name, axes), pdl)
    place = len(plan.variants)
    phases = tuple(_phase(plan, phase, name, axes, number, place) for phase in plan.phases)
    return msgspec.structs.replace(plan, variants=(*plan.variants, added), phases=phases)


def _phase(plan: Plan, phase: Phase, name: str, axes: Axes, number: int, place: int) -> Phase:
    def changed(launch: Launch) -> Launch:
        if all(call.variant != number for call in _calls(launch)):
            return launch
        made = template(name).call(place, axes, launch.operands, _letters(plan, phase, launch))
        return _with_calls(launch, lambda call: made if call.variant == number else call)

    return msgspec.structs.replace(phase, launches=tuple(map(changed, phase.launches)))


def _with_calls(launch: Launch, change: Callable[[TemplateCall], TemplateCall]) -> Launch:
    kernels = {target: map_calls(kernel, change) for target, kernel in launch.kernels.items()}
    return msgspec.structs.replace(launch, kernels=kernels)


def _letters(plan: Plan, phase: Phase, launch: Launch) -> Mapping[str, Expression]:
    tables = {"weight": plan.weights, "constant": plan.constants, "state": plan.states, "buffer": phase.buffers}
    shapes = {o.role: tuple(tables[o.space][o.index].shape) for o in launch.operands if o.space in tables}
    return bind_axes(all_ops()[launch.op], shapes)


def gathered(file: PlanFile, plan: Plan, added: Mapping[int, BuiltVariant], notes: Mapping[str, str]) -> Retuned:
    """The plan of the file with changes, without variants that nobody calls: their code from the file, or, for those
    that were `added`, as given. `notes` go among the options that it was made with."""
    called = sorted({c.variant for phase in plan.phases for launch in phase.launches for c in _calls(launch)})
    keys = [variant_key(plan, number) for number in called]
    held = {kind: file.section(kind) for kind in ("cubin", "ptx")}
    built = {key: code for key, n in zip(keys, called, strict=True) if (code := added.get(n) or _code(held, plan, n))}
    code = code_tables(keys, built)
    numbers = {old: new for new, old in enumerate(called)}

    def renumbered(call: TemplateCall) -> TemplateCall:
        return msgspec.structs.replace(call, variant=numbers[call.variant])

    phases = tuple(
        msgspec.structs.replace(phase, launches=tuple(_with_calls(launch, renumbered) for launch in phase.launches))
        for phase in plan.phases
    )
    producer = msgspec.structs.replace(plan.producer, options={**plan.producer.options, **notes})
    made = msgspec.structs.replace(
        plan, phases=phases, templates=code.templates, variants=code.variants, producer=producer
    )
    return Retuned(made, dict(code.sections))


def _code(held: Mapping[str, bytes], plan: Plan, number: int) -> BuiltVariant | None:
    """What the sections of the file hold of a variant; None if it was not built ahead of time."""
    variant = plan.variants[number]
    if variant.built is None:
        return None
    built, place = variant.built, variant.built.code
    data = held[place.section][place.offset : place.offset + place.length]
    return BuiltVariant(
        built.entry, variant.parameters, built.threads, built.shared_bytes, variant.pdl, built.registers, data
    )


def _calls(launch: Launch) -> tuple[TemplateCall, ...]:
    return tuple(call for kernel in launch.kernels.values() for call in template_calls(kernel))


def variant_key(plan: Plan, number: int) -> VariantKey:
    """What a build is asked for."""
    variant = plan.variants[number]
    return plan.templates[variant.template].name, variant.target, tuple(sorted(variant.axes.items()))
