"""What do a decoder's islands cost beside ONNX Runtime, which computes all of the same file?

    measure_islands.py PLAN MODEL.onnx [LENGTH ...]

PLAN is MODEL's, for this GPU; `plant_operator.py` makes a model that needs islands. Prints, for prompts of each length
(10, 100, 300 by default), the median time to first token and time of a further token, of ours once everything is
captured and of ONNX Runtime's CPU provider on all cores, then what the session says of its islands and segments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from statistics import median
from typing import Any

import numpy as np

from hjgc.runtime.opening import open_session
from hjgc.tools.peers.ort import OrtPeer

LENGTHS = (10, 100, 300)
ANSWERS, STEPS = 20, 16
PEER_ANSWERS, PEER_STEPS = 3, 5
FIRST = 5
"""The lowest token id of a prompt: those below mean something else in most vocabularies."""


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(FIRST, 1000, length).tolist()


def ours(session: Any, length: int, steps: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each further one."""
    with session.request() as request:
        begun = time.perf_counter()
        request.prefill(prompt(length), {})
        first, further = time.perf_counter() - begun, list[float]()
        for _ in range(steps):
            begun = time.perf_counter()
            request.decode()
            further.append(time.perf_counter() - begun)
    return first, further


def main(plan: str, model: str, *lengths: str) -> None:
    wanted = tuple(map(int, lengths)) or LENGTHS
    with open_session(plan, device="cuda") as session:
        for length in wanted:
            ours(session, length, 2)
        session.wait_captured(300)
        for length in wanted:
            found = [ours(session, length, STEPS) for _ in range(ANSWERS)]
            show("hjgc", length, [first for first, _ in found], [each for _, rest in found for each in rest])
        report = session.report()
    threads = os.cpu_count() or 1
    peer = OrtPeer(model=model, threads=threads)
    for length in wanted:
        answers = [peer.answer(prompt(length), PEER_STEPS) for _ in range(PEER_ANSWERS)]
        further = [each for answer in answers for each in answer.further]
        show(f"ONNX Runtime, {threads} threads", length, [answer.first for answer in answers], further)
    print(json.dumps({"islands": report["islands"], "totals": report["totals"]}))


def show(who: str, length: int, first: list[float], further: list[float]) -> None:
    print(f"{who}: {length} tokens: first {1e3 * median(first):.2f} ms, further {1e3 * median(further):.3f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
