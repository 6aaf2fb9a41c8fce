"""How is a plan that is a function measured: launch by launch, by graphs, or built just in time?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hjgc.tools.machine import peak_memory
from hjgc.tools.peers.peer import Counts, Startup
from hjgc.tools.peers.plan import open_device, replays, torch_version

PLACE = ("phase", "schedule", "segment", "last_segment", "key")
STATIC = (*PLACE, "launches", "state", "hits", "plain_runs", "bytes", "why")
DYNAMIC = ("segment", "launches", "runs")


class FunctionPeer:
    """A `Function` of our own runtime, called with the arrays of the file `inputs`. `mode`: `plain` (nothing is
    captured), `graph`, `jit` (no code of the plan is used: every kernel is built when the plan is loaded). Implements
    `peer.CallPeer`."""

    def __init__(
        self,
        *,
        plan: str,
        weights: str | None,
        device: str | None,
        mode: str,
        inputs: str,
        strict: bool = False,
        rebuild: bool = False,
    ) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            from hjgc._version import __version__
            from hjgc.runtime.opening import open_plan, start_function
            from hjgc.tools.calling import read_arrays
        with self.startup.part("plan"):
            opened = open_plan(plan, weights)
        self._memory = open_device(self.startup, opened.file.plan.targets, device)
        self._capture = mode != "plain"
        with self.startup.part("weights"):
            self._function = start_function(
                opened,
                device=device,
                capture=self._capture,
                strict=strict,
                trust="templates" if rebuild or mode == "jit" else "plan",
            )
        self._inputs = read_arrays(Path(inputs))
        self.versions = {"hjgc": __version__} | torch_version()

    def call(self) -> dict[str, Any]:
        return self._function(self._inputs)

    outputs = call

    def counts(self) -> Counts:
        return replays(self._function.report()["totals"])

    def settle(self, timeout: float) -> bool:
        return not self._capture or self._function.wait_captured(timeout)

    def details(self) -> dict[str, Any]:
        """The segments that ran, static ones with the states of their graphs and dynamic ones with their reasons; what
        islands took; the worker; the memory."""
        report = self._function.report()
        static = [entry for entry in report["segments"] if entry["kind"] == "static"]
        dynamic = [entry for entry in report["segments"] if entry["kind"] == "dynamic"]
        shown = {
            "target": report["target"],
            "calls": report["calls"],
            "segments": [{name: entry[name] for name in STATIC} for entry in static],
            "dynamic": [{name: entry[name] for name in DYNAMIC} | {"reasons": _codes(entry)} for entry in dynamic],
            "graph_bytes": report["totals"]["bytes"],
            **{name: report[name] for name in ("worker", "memory", "islands", "code")},
            "host_bytes": peak_memory(),
        }
        return shown if self._memory is None else shown | {"device_memory": {"taken": self._memory.taken()}}

    def close(self) -> None:
        self._function.close()
        if self._memory is not None:
            self._memory.close()


def _codes(entry: dict[str, Any]) -> list[str]:
    """Why a segment is dynamic, each code once."""
    return list(dict.fromkeys(reason["code"] for reason in entry["reasons"]))
