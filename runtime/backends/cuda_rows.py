"""For how many rows has a phase its kernels, on one target, and which are missing for others?"""

from __future__ import annotations

from collections.abc import Callable

from hjgc.plan_format.structs import Phase, RowsCall, TemplateCall, call_for
from hjgc.runtime.backend import Rows

Span = tuple[int, int]
"""The first and the last of some row counts."""


def spans(phase: Phase, target: str) -> tuple[tuple[Span, tuple[int, ...]], ...]:
    """Row counts that are served alike, in rising order, and the variants that serve them."""
    high = next((size.high for size in phase.sizes if size.lives == "key"), 1)
    kernels = [launch.kernels[target] for launch in phase.launches]
    ends = {entry.high for kernel in kernels if isinstance(kernel, RowsCall) for entry in kernel.ranges} | {high}
    found: list[tuple[Span, tuple[int, ...]]] = []
    first = 1
    for end in sorted(ends):
        calls = [call_for(kernel, end) for kernel in kernels if isinstance(kernel, RowsCall | TemplateCall)]
        found.append(((first, end), tuple(dict.fromkeys(call.variant for call in calls if call is not None))))
        first = end + 1
    return tuple(found)


class ReadyRows:
    """What a target can run, as `loaded` says of a variant whether it is there."""

    def __init__(self, phases: tuple[Phase, ...], target: str, loaded: Callable[[int], bool]) -> None:
        self._spans = {phase.name: spans(phase, target) for phase in phases}
        self._loaded = loaded
        self.refresh()

    def refresh(self) -> None:
        """Variants came."""
        self._most: dict[tuple[str, int], int] = {}
        self._ready = {
            phase: [span for span, variants in found if all(map(self._loaded, variants))]
            for phase, found in self._spans.items()
        }

    def most(self, phase: str, rows: int) -> int:
        """The most rows, up to `rows`, that a call may have; 0 if none."""
        if (phase, rows) not in self._most:
            fitting = (min(rows, last) for first, last in self._ready[phase] if first <= rows)
            self._most[phase, rows] = max(fitting, default=0)
        return self._most[phase, rows]

    def missing(self, phase: str, rows: Rows) -> tuple[int, ...]:
        """The variants that a call of so many rows lacks."""
        return tuple(index for index in self._serving(phase, rows) if not self._loaded(index))

    def _serving(self, phase: str, rows: Rows) -> tuple[int, ...]:
        if not isinstance(rows, int):  # a function's, which has the same variants for all sizes
            ((_, variants),) = self._spans[phase]
            return variants
        return next((v for (first, last), v in self._spans[phase] if first <= rows <= last), ())
