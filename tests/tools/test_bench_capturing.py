"""Are only requests timed that a building worker could disturb, and beside what?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hjgc.tools.benching.fresh import graph_lengths, judged
from hjgc.tools.peers.capturing import LEAST_IDLE_ROUNDS, Watching, watch
from hjgc.tools.peers.peer import Answer, Counts, Startup
from tests.plans import small_plan


class BuildingPeer:
    """Builds a graph for each new prompt length, ready once it was asked `slowness` times whether it is."""

    def __init__(self, slowness: int) -> None:
        self.startup, self.versions = Startup(), {"it": "1"}
        self.slowness, self.pending = slowness, 0
        self.ready: set[int] = set()
        self.asked: list[int] = []
        self.total = Counts()

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        length = len(ids)
        self.asked.append(length)
        if length not in self.ready:
            self.pending = self.slowness
        replayed = tokens if length in self.ready else 0
        self.ready.add(length)
        self.total = Counts(self.total.replayed + replayed, self.total.ran + tokens)
        return Answer(0.5, (0.25,) * (tokens - 1), (1,) * tokens)

    def counts(self) -> Counts:
        return self.total

    def settle(self, timeout: float) -> bool:
        assert timeout == 0.0
        self.pending = max(0, self.pending - 1)
        return self.pending == 0

    def details(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


WATCHING = Watching(measured=[[1], [1, 2]], asking=[[1] * 4, [1] * 8], tokens=3, rest=0.01, seconds=100.0)


def watched(peer: BuildingPeer, watching: Watching = WATCHING, tick: float = 0.0) -> tuple[dict[str, Any], list[float]]:
    rests: list[float] = []
    now = [0.0]

    def clock() -> float:
        now[0] += tick
        return now[0]

    return watch(peer, watching, rests.append, clock), rests


def test_requests_are_timed_only_while_something_is_being_built():
    peer = BuildingPeer(slowness=3)
    seen, rests = watched(peer)
    assert peer.asked[:6] == [4, 1, 2, 8, 1, 2]  # asked for, then timed while it is built
    assert [(event["length"], event["replayed"]) for event in seen["building"]][:4] == [
        (1, False), (2, False), (1, True), (2, True),
    ]  # fmt: skip
    assert seen["settled"] and set(rests) == {0.01}
    assert len(rests) == len(seen["building"]) + len(seen["idle"])


def test_the_same_is_done_with_an_idle_worker_for_comparison():
    seen, _ = watched(BuildingPeer(slowness=3))
    assert len(seen["idle"]) == 2 * LEAST_IDLE_ROUNDS and all(event["replayed"] for event in seen["idle"])


def test_watching_ends_when_a_worker_never_does():
    seen, _ = watched(BuildingPeer(slowness=1 << 30), tick=1.0)
    assert not seen["settled"] and seen["building"]


REST = {"states": {"PROMOTED": 2}, "graph_bytes": 1, "device_memory": None}


def event(length: int, first: float, *, replayed: bool = True) -> dict[str, Any]:
    return {"length": length, "first": first, "further": [first / 10], "replayed": replayed}


def test_p99_meanwhile_is_compared_with_idle_p99_over_all_lengths():
    idle = [event(10, 0.010), event(10, 0.010), event(20, 0.020), event(20, 0.022)]
    building = [event(10, 0.011), event(20, 0.020), event(20, 0.090, replayed=False)]
    run = {"building": building, "idle": idle, "settled": True, "seconds": 1.5, "worker": {"builds": 2}} | REST
    found = judged("it", [run])
    assert found["p99_of_idle"] == {"ttft": 1.0, "token": 0.9091}
    row = found["rows"][1]
    assert (row["length"], row["replayed_ms"]["count"], row["plain_ms"]["max"], row["idle_ms"]["p99"]) == (
        20,
        1,
        90,
        22,
    )
    assert found["token_ms"]["plain"]["count"] == 1


def test_where_nothing_was_replayed_there_is_no_comparison():
    run = {"building": [], "idle": [event(10, 0.01)], "settled": True, "seconds": 0.1, "worker": {}} | REST
    assert judged("it", [run])["p99_of_idle"] == {"ttft": None, "token": None}


@pytest.mark.parametrize(("context", "lengths"), [(48, [2, 4, 8, 16]), (17, [2, 4, 8])])
def test_every_graph_of_a_prompt_is_asked_for(context: int, lengths: list[int]):
    assert graph_lengths(small_plan(context=context)) == lengths
