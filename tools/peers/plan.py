"""How is a plan measured: by plain launches, by graphs, with the host between them, or built just in time?"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hjgc.tools.peers.peer import Answer, Counts, Startup, timed_answer

OPTIONAL = ("memory", "launch_ahead", "code")
"""Parts of a session's report that not every session has."""


class PlanPeer:
    """A session of our own runtime. `mode`: `plain` (nothing is captured), `graph`, `hybrid` (a logits processor of the
    caller's that changes nothing stands between the graphs), `jit` (no code of the plan is used: every kernel is built
    when the session opens). Implements `peer.Peer`."""

    def __init__(
        self,
        *,
        plan: str,
        weights: str | None,
        device: str | None,
        mode: str,
        strict: bool = False,
        rebuild: bool = False,
    ) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            from hjgc._version import __version__
            from hjgc.runtime.opening import open_plan, start_session
            from hjgc.runtime.session import GRAPH_BYTES
        with self.startup.part("plan"):
            opened = open_plan(plan, weights)
        self._plan = opened.file.plan
        self._memory = open_device(self.startup, self._plan.targets, device)
        with self.startup.part("weights"):
            self._capture = mode != "plain"
            self._session = start_session(
                opened,
                device=device,
                graph_bytes=GRAPH_BYTES,
                capture=self._capture,
                strict=strict,
                trust="templates" if rebuild or mode == "jit" else "plan",
            )
        self._process = _unchanged if mode == "hybrid" else None
        self.versions = {"hjgc": __version__} | torch_version()

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        with self._session.request(process=self._process) as request:
            first = ending(request.prefill, lambda: tokens == 1)
            return timed_answer(lambda: first(ids, {}), _further(request.decode, tokens), tokens)

    def counts(self) -> Counts:
        return replays(self._session.report()["totals"])

    def settle(self, timeout: float) -> bool:
        return not self._capture or self._session.wait_captured(timeout)

    def launches(self) -> list[dict[str, Any]]:
        """What each kind of launch takes: see `launches.py`."""
        from hjgc.tools.peers.launches import time_launches

        return time_launches(self._plan, self._session.backend)

    def details(self) -> dict[str, Any]:
        """The segments that ran, with the states of their graphs, the worker, and the memory of the device."""
        report = self._session.report()
        static = [entry for entry in report["segments"] if entry["kind"] == "static" and entry["state"] != "COLD"]
        kept = ("phase", "schedule", "key", "launches", "state", "hits", "plain_runs", "bytes", "why")
        shown = {
            "target": report["target"],
            "segments": [{name: entry[name] for name in kept} for entry in static],
            "graph_bytes": report["totals"]["bytes"],
            "worker": report["worker"],
        }
        return shown | {name: report[name] for name in OPTIONAL if name in report} | self._taken()

    def _taken(self) -> dict[str, Any]:
        if self._memory is None:
            return {}
        caches = sum(state.bytes for state in self._plan.states if state.kind in ("full_cache", "ring_cache"))
        taken, needed = self._memory.taken(), self._plan.ledger.weights + caches
        return {"device_memory": {"taken": taken, "weights_and_cache": needed, "beyond": taken - needed}}

    def close(self) -> None:
        self._session.close()
        if self._memory is not None:
            self._memory.close()


def ending(step: Callable[..., int], is_last: Callable[[], bool]) -> Callable[..., int]:
    """`step`, told not to launch ahead for a token that nobody will ask for, if it can be told."""
    if "last" not in inspect.signature(step).parameters:
        return step
    return lambda *arguments: step(*arguments, last=is_last())


def _further(decode: Callable[..., int], tokens: int) -> Callable[[int], int]:
    left = tokens - 1
    step = ending(decode, lambda: left == 0)

    def further(token: int) -> int:
        del token  # the plan's own memory has it
        nonlocal left
        left -= 1
        return step()

    return further


def _unchanged(history: Any, logits: Any) -> None:
    """A logits processor that looks and says: as they are."""
    del history, logits


def open_device(startup: Startup, targets: Sequence[str], device: str | None) -> Any:
    """Import what serves, which would be counted as loading weights otherwise, and on a GPU make the context.
    Returns what knows how much of the GPU's memory is taken from now on."""
    if device == "cpu" or (device is None and "cpu" in targets):
        if "cpu" in targets:
            with startup.part("import"):
                importlib.import_module("hjgc.runtime.backends.cpu")
        return None
    with startup.part("import"):
        importlib.import_module("hjgc.runtime.backends.cuda")
        from hjgc.tools.peers.device_memory import DeviceMemory
    with startup.part("device"):
        return DeviceMemory()


def replays(totals: Mapping[str, int]) -> Counts:
    """Of the sums of a report."""
    outside = totals["outside_buckets"]  # static segments that ran plainly because no bucket holds their length
    return Counts(totals["hits"], totals["hits"] + totals["plain_runs"] + outside + totals["dynamic_runs"])


def torch_version() -> dict[str, str]:
    """Of the torch that the CPU backend brought in, if it did."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"torch": str(torch.__version__)}
