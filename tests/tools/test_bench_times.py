"""What do many measured times come to?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hjgc.plan_format.errors import HjgcError
from hjgc.tools.benching.settings import spread
from hjgc.tools.benching.times import first_difference, percentile, summary, tail


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 5.0), (0.9, 9.0), (0.91, 10.0), (0.99, 10.0), (1.0, 10.0)]
)
def test_a_percentile_is_the_smallest_value_that_reaches_the_share(share: float, value: float):
    assert percentile([float(number) for number in (3, 1, 10, 2, 9, 4, 8, 5, 7, 6)], share) == value


def test_there_is_no_percentile_of_nothing():
    assert summary([]) is None
    with pytest.raises(HjgcError, match="expected at least one measurement"):
        percentile([], 0.5)


def test_a_summary_is_in_milliseconds():
    assert summary([0.001, 0.003]) == {"count": 2, "mean": 2.0, "p50": 1.0, "p90": 3.0, "p99": 3.0, "max": 3.0}


@pytest.mark.parametrize(("tokens", "place"), [((1, 2, 3), None), ((1, 2), None), ((1, 5, 6), 1), ((7, 2, 3), 0)])
def test_the_first_other_token_is_found(tokens: Sequence[int], place: int | None):
    assert first_difference(tokens, (1, 2, 3)) == place


def test_a_tail_is_p99_over_p50():
    assert tail(summary([0.002, 0.003])) == 1.5 and tail(None) is None


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, ()), (1, (10,)), (2, (10, 50)), (3, (10, 30, 50)), (9, (10, 20, 30, 40, 50))]
)
def test_few_of_many_lengths_are_spread_over_them(count: int, chosen: tuple[int, ...]):
    assert spread((10, 20, 30, 40, 50), count) == chosen
