"""May a segment leave a state only for one that may follow it?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hjgc.runtime.route import StaticRoute
from hjgc.runtime.runner import NEXT, IllegalTransition, SegmentRunner, State, Stretch
from tests.runtime.fake_device import FakeGraph

GRAPH = FakeGraph("decode", (0, 1), 1, 200)

ACTIONS: dict[State, Callable[[SegmentRunner], object]] = {
    State.WARM: lambda runner: runner.warm(),
    State.QUEUED: lambda runner: runner.queue(),
    State.BUILT: lambda runner: runner.built(GRAPH),
    State.PROMOTED: lambda runner: runner.promote(),
    State.EVICTED: lambda runner: runner.evict(),
    State.REFUSED: lambda runner: runner.refuse("no room"),
    State.QUARANTINED: lambda runner: runner.quarantine({"why": "other bytes"}),
}

PATHS: dict[State, list[State]] = {
    State.COLD: [],
    State.WARM: [State.WARM],
    State.QUEUED: [State.WARM, State.QUEUED],
    State.BUILT: [State.WARM, State.QUEUED, State.BUILT],
    State.PROMOTED: [State.WARM, State.QUEUED, State.BUILT, State.PROMOTED],
    State.EVICTED: [State.WARM, State.QUEUED, State.BUILT, State.PROMOTED, State.EVICTED],
    State.REFUSED: [State.WARM, State.QUEUED, State.REFUSED],
    State.QUARANTINED: [State.WARM, State.QUEUED, State.BUILT, State.QUARANTINED],
}

LEGAL = {
    (State.COLD, State.WARM),
    (State.WARM, State.QUEUED),
    (State.QUEUED, State.BUILT),
    (State.QUEUED, State.REFUSED),
    (State.QUEUED, State.WARM),
    (State.WARM, State.REFUSED),
    (State.BUILT, State.PROMOTED),
    (State.BUILT, State.QUARANTINED),
    (State.PROMOTED, State.EVICTED),
    (State.EVICTED, State.QUEUED),
}


def runner_in(state: State) -> SegmentRunner:
    runner = SegmentRunner(Stretch("decode", "default", 0, (0, 1)), bucket=1, shortest=1)
    for step in PATHS[state]:
        ACTIONS[step](runner)
    assert runner.state is state
    return runner


@pytest.mark.parametrize(("before", "after"), sorted(LEGAL))
def test_a_legal_transition_is_made_and_remembered(before: State, after: State) -> None:
    runner = runner_in(before)
    ACTIONS[after](runner)
    assert runner.state is after
    assert runner.history[-1] == f"{before} -> {after}"


@pytest.mark.parametrize(
    ("before", "after"), sorted((a, b) for a in State for b in ACTIONS if (a, b) not in LEGAL), ids=str
)
def test_any_other_transition_raises_and_changes_nothing(before: State, after: State) -> None:
    runner = runner_in(before)
    with pytest.raises(IllegalTransition, match=f"after {before}, found {after}"):
        ACTIONS[after](runner)
    assert runner.state is before
    assert len(runner.history) == len(PATHS[before])


def test_the_table_of_states_is_the_one_that_the_tests_know() -> None:
    assert {(before, after) for before, following in NEXT.items() for after in following} == LEGAL


@pytest.mark.parametrize("state", State)
def test_only_a_built_or_promoted_runner_has_a_graph(state: State) -> None:
    runner = runner_in(state)
    assert (runner.graph is not None) == (state in (State.BUILT, State.PROMOTED))
    assert runner.bytes == (200 if runner.graph else 0)


def test_a_runner_in_use_is_not_evicted() -> None:
    runner = runner_in(State.PROMOTED)
    runner.uses = 1
    with pytest.raises(IllegalTransition, match="1 steps use its graph"):
        runner.evict()
    assert runner.graph is GRAPH


def test_an_old_runner_remembers_only_its_last_transitions() -> None:
    runner = runner_in(State.EVICTED)
    for _ in range(20):
        for state in (State.QUEUED, State.BUILT, State.PROMOTED, State.EVICTED):
            ACTIONS[state](runner)
    assert len(runner.history) == 32


@pytest.mark.parametrize(
    ("buckets", "tokens", "bucket"),
    [
        ((2, 4, 8), 1, 2),
        ((2, 4, 8), 2, 2),
        ((2, 4, 8), 3, 4),
        ((2, 4, 8), 8, 8),
        ((2, 4, 8), 9, None),
        ((16,), 8, 16),
        ((16,), 7, None),
    ],
)
def test_the_smallest_bucket_serves_unless_it_would_be_over_half_empty(
    buckets: tuple[int, ...], tokens: int, bucket: int | None
) -> None:
    route = StaticRoute(Stretch("prefill", "default", 0, (0,)), buckets, 1)
    runner = route.runner(tokens)
    assert (runner.bucket if runner else None) == bucket


def test_a_runner_knows_the_shortest_length_that_its_bucket_serves() -> None:
    route = StaticRoute(Stretch("prefill", "default", 0, (0,)), (2, 6, 14, 16), 1)
    assert [runner.shortest for runner in route.runners] == [1, 3, 7, 15]
