"""Is a prompt served as fast by a graph as by plain launches, with and without programmatic edges, hot and rested?

    compare_paths.py PLAN [LENGTH ...]      the plan's weights beside it; prints least / median / most milliseconds

Each length is answered 30 times back to back, then 20 times with 30 ms of rest before each, by graphs and by launches
in turn, with the clock and the power that the card shows after; then by graphs whose edges are full above some rows.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np

from hjgc.plan_format.structs import Launch
from hjgc.runtime.backend import Rows
from hjgc.runtime.backends import cuda_launch
from hjgc.runtime.opening import open_session

LENGTHS = (10, 32, 100, 160, 257, 400, 511)
REST = 0.03
EARLY_UP_TO = 96
"""Rows up to which edges stay programmatic in the last part."""


def card() -> str:
    query = "--query-gpu=clocks.sm,power.draw,temperature.gpu"
    shown = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def answers(session: Any, length: int, count: int, rest: float = 0.0) -> str:
    rng = np.random.default_rng(length)
    times: list[float] = []
    for _ in range(count):
        ids = rng.integers(0, session.plan.model.vocab_size, length).tolist()
        time.sleep(rest)
        with session.request() as request:
            began = time.perf_counter()
            request.prefill(ids, {})
            times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    return f"{times[0]:.3f} / {times[count // 2]:.3f} / {times[-1]:.3f}"


def both(session: Any, length: int) -> str:
    return f"{answers(session, length, 30)}, rested {answers(session, length, 20, REST)}"


def captured(plan: str, lengths: tuple[int, ...]) -> Any:
    session = open_session(plan, device="cuda")
    for length in lengths:
        answers(session, length, 2)
    session.wait_captured(120)
    worker = session.report()["worker"]
    print({name: worker[name] for name in ("builds", "build_seconds", "check_seconds", "aborted_checks")})
    return session


def main(plan: str, lengths: tuple[int, ...]) -> None:
    print(card())
    session = captured(plan, lengths)
    take = session._worker.take
    for length in lengths:
        print(f"{length:4} graph {both(session, length)}; {card()}", flush=True)
        session._worker.take = lambda runner: None
        print(f"{length:4} plain {both(session, length)}; {card()}", flush=True)
        session._worker.take = take
    session.close()
    overlaps = cuda_launch.Kernels.overlaps

    def early(self: cuda_launch.Kernels, launch: Launch, tokens: Rows) -> bool:
        return isinstance(tokens, int) and tokens <= EARLY_UP_TO and overlaps(self, launch, tokens)

    cuda_launch.Kernels.overlaps = early
    lengths = tuple(length for length in lengths if length > EARLY_UP_TO)
    session = captured(plan, lengths)
    for length in lengths:
        print(f"{length:4} graph, full edges {both(session, length)}; {card()}", flush=True)
    session.close()


if __name__ == "__main__":
    main(sys.argv[1], tuple(map(int, sys.argv[2:])) or LENGTHS)
