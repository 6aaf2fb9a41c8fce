"""How is a plan measured: by plain launches, or by graphs?"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from hjgc.tools.peers.peer import Answer, Startup, timed_answer


class PlanPeer:
    """A session of our own runtime. `mode` is plain (nothing is captured) or graph. Implements `peer.Peer`."""

    def __init__(self, *, plan: str, weights: str | None, device: str | None, mode: str) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            from hjgc._version import __version__
            from hjgc.runtime.opening import open_plan, start_session
            from hjgc.runtime.session import GRAPH_BYTES
        with self.startup.part("plan"):
            opened = open_plan(plan, weights)
        if "cpu" in opened.file.plan.targets and device in (None, "cpu"):
            with self.startup.part("import"):  # torch, which would be counted as loading weights otherwise
                importlib.import_module("hjgc.runtime.backends.cpu")
        with self.startup.part("weights"):
            capture = mode == "graph"
            self._session = start_session(opened, device=device, graph_bytes=GRAPH_BYTES, capture=capture)
        self._capture = capture
        self.versions = {"hjgc": __version__} | _torch_version()

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        before = self._totals()
        with self._session.request() as request:
            answer = timed_answer(lambda: request.prefill(ids, {}), lambda _: request.decode(), tokens)
        after = self._totals()
        replayed, plain, dynamic = (after[name] - before[name] for name in ("hits", "plain_runs", "dynamic_runs"))
        return dataclasses.replace(answer, replayed=replayed, ran=replayed + plain + dynamic)

    def settle(self, timeout: float) -> bool:
        return not self._capture or self._session.wait_captured(timeout)

    def details(self) -> dict[str, Any]:
        """The segments that ran, with the states of their graphs."""
        report = self._session.report()
        static = [entry for entry in report["segments"] if entry["kind"] == "static" and entry["state"] != "COLD"]
        kept = ("phase", "schedule", "key", "launches", "state", "hits", "plain_runs", "bytes", "why")
        return {
            "target": report["target"],
            "segments": [{name: entry[name] for name in kept} for entry in static],
            "graph_bytes": report["totals"]["bytes"],
        }

    def close(self) -> None:
        self._session.close()

    def _totals(self) -> dict[str, int]:
        """Outside the time measured."""
        totals = self._session.report()["totals"]
        outside = totals["outside_buckets"]  # static segments that ran plainly because no bucket holds their length
        return totals | {"plain_runs": totals["plain_runs"] + outside}


def _torch_version() -> dict[str, str]:
    """Of the torch that the CPU backend brought in, if it did."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"torch": str(torch.__version__)}
