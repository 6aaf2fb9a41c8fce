"""What must be built so that a plan serves a chip that it has no code for?

The plan with one more target, whose variants are not built: of each phase the calls of the nearest chip, with the same
templates and axes, or, where these cannot be built for the chip or would not fit it, those of the portable target.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from hjgc.plan_format.chips import PORTABLE, chip_number, has_pdl
from hjgc.plan_format.structs import Phase, Plan, TemplateCall, Variant, map_calls, template_calls

SHARED_BYTES = {number: kib << 10 for number, kib in ((80, 163), (87, 163), (90, 227), (100, 227), (103, 227))}
LEAST_SHARED_BYTES = 99 << 10
"""What a block may use on the other chips."""


class NoKernels(Exception):
    """A phase has no calls that the chip could run: a sentence."""


def _shared_bytes(target: str) -> int:
    """What a block may use at most; for the portable target, on every chip."""
    return LEAST_SHARED_BYTES if target == PORTABLE else SHARED_BYTES.get(chip_number(target), LEAST_SHARED_BYTES)


def for_chip(plan: Plan, chip: str) -> tuple[Plan, tuple[int, ...]]:
    """The plan with `chip` among its targets, and those of its new variants whose models were built ahead of time.
    Raises NoKernels."""
    retarget = _Retarget(plan, chip)
    phases = tuple(map(retarget.phase, plan.phases))
    derived = replace(plan, targets=(*plan.targets, chip), phases=phases, variants=(*plan.variants, *retarget.variants))
    return derived, tuple(retarget.ahead)


def without_code(plan: Plan, target: str) -> tuple[Plan, tuple[int, ...]]:
    """The plan with nothing built, and the variants of this target that were."""
    built = (i for i, variant in enumerate(plan.variants) if variant.target == target and variant.built is not None)
    return replace(plan, variants=tuple(replace(variant, built=None) for variant in plan.variants)), tuple(built)


class _Retarget:
    """Makes the variants of one more target."""

    def __init__(self, plan: Plan, chip: str) -> None:
        self._plan, self._chip, self._number = plan, chip, chip_number(chip)
        self._numbers: dict[int, int] = {}
        self.variants: list[Variant] = []
        self.ahead: list[int] = []

    def phase(self, phase: Phase) -> Phase:
        base = self._base(phase)
        launches = tuple(
            replace(launch, kernels={**launch.kernels, self._chip: map_calls(launch.kernels[base], self._call)})
            for launch in phase.launches
        )
        return replace(phase, launches=launches)

    def _base(self, phase: Phase) -> str:
        for target in self._candidates():
            if all(map(self._suits, self._variants_of(phase, target))):
                return target
        found = ", ".join(target for target in self._plan.targets if target != "cpu")
        raise NoKernels(
            f"expected kernels of {phase.name} that can be built for {self._chip}, found those of {found}; "
            f"compile with --target {self._chip}"
        )

    def _candidates(self) -> list[str]:
        """Chips from the nearest on: of those before this one the last, then those after it; then the portable one."""
        chips = [target for target in self._plan.targets if target.startswith("sm_") and target != self._chip]
        chips.sort(key=self._distance)
        return chips + [PORTABLE] * (PORTABLE in self._plan.targets)

    def _distance(self, target: str) -> tuple[bool, int]:
        number = chip_number(target)
        return number > self._number, abs(number - self._number)

    def _variants_of(self, phase: Phase, target: str) -> Iterable[Variant]:
        calls = (call for launch in phase.launches for call in template_calls(launch.kernels[target]))
        return (self._plan.variants[call.variant] for call in calls)

    def _suits(self, variant: Variant) -> bool:
        """What is not built may need as much as the chip that it was chosen for has."""
        needed = _shared_bytes(variant.target) if variant.built is None else variant.built.shared_bytes
        only = self._plan.templates[variant.template].only
        return needed <= _shared_bytes(self._chip) and only in (None, self._chip)

    def _call(self, call: TemplateCall) -> TemplateCall:
        base = self._plan.variants[call.variant]
        if call.variant not in self._numbers:
            number = self._numbers[call.variant] = len(self._plan.variants) + len(self.variants)
            pdl = base.pdl and has_pdl(self._chip)
            axes = {**base.axes, "pdl": pdl} if "pdl" in base.axes else base.axes
            self.variants.append(replace(base, target=self._chip, axes=axes, pdl=pdl, built=None))
            if base.built is not None:
                self.ahead.append(number)
        return replace(call, variant=self._numbers[call.variant])
