"""What do many measured times come to?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hjgc.plan_format.errors import HjgcError

POINTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Summary = dict[str, float | int]


def summary(seconds: Sequence[float]) -> Summary | None:
    """Milliseconds; None where nothing was measured."""
    if not seconds:
        return None
    points = {name: milliseconds(percentile(seconds, share)) for name, share in POINTS.items()}
    mean, longest = milliseconds(sum(seconds) / len(seconds)), milliseconds(max(seconds))
    return {"count": len(seconds), "mean": mean, **points, "max": longest}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank): always one that was measured.
    Raises HjgcError for no values."""
    if not values:
        raise HjgcError("expected at least one measurement, found none")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def tail(points: Summary | None) -> float | None:
    """p99 over p50."""
    return None if points is None else round(points["p99"] / points["p50"], 4)


def milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 4)


def first_difference(tokens: Sequence[int], reference: Sequence[int]) -> int | None:
    """The first place where the two do not agree, as far as both go; None if there is none."""
    pairs = enumerate(zip(tokens, reference, strict=False))
    return next((place for place, (one, other) in pairs if one != other), None)
