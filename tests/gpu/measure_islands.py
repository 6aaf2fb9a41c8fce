"""What do a decoder's islands cost beside ONNX Runtime, which computes all of the same file?

    measure_islands.py PLAN MODEL.onnx [LENGTH ...] [--no-cpu]

PLAN is MODEL's, for this GPU; `plant_operator.py` makes a model that needs islands. Prints, for prompts of each length
(10, 100, 300 by default), the median time to first token, and median and p99 of a further token: of ours once all is
captured, of ONNX Runtime's CUDA provider where onnxruntime has it, and of its CPU provider on all cores; one after the
other, each alone on the GPU, after an answer that does not count. Says how many nodes each provider runs, and in the
end what the session says of its islands and segments.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from hjgc.plan_format.errors import InputError
from hjgc.runtime.opening import open_session
from hjgc.tools.benching.times import percentile
from hjgc.tools.peers.ort import OrtPeer
from hjgc.tools.peers.ort_providers import CUDA

LENGTHS = (10, 100, 300)
ANSWERS, STEPS = 20, 16
CPU_ANSWERS, CPU_STEPS = 3, 5
FIRST = 5
"""The lowest token id of a prompt: those below mean something else in most vocabularies."""
Times = tuple[float, Sequence[float]]
"""Seconds to the first token, and of each further one."""


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(FIRST, 1000, length).tolist()


def ours(session: Any, length: int, steps: int) -> Times:
    with session.request() as request:
        begun = time.perf_counter()
        request.prefill(prompt(length), {})
        first, further = time.perf_counter() - begun, list[float]()
        for _ in range(steps):
            begun = time.perf_counter()
            request.decode()
            further.append(time.perf_counter() - begun)
    return first, further


def measure(who: str, length: int, answer: Callable[[], Times], answers: int) -> None:
    """Print what so many answers take, after one that does not count."""
    answer()
    found = [answer() for _ in range(answers)]
    first, further = median(first for first, _ in found), [seconds for _, rest in found for seconds in rest]
    print(
        f"{who}: {length} tokens: first {1e3 * first:.2f} ms, further {1e3 * median(further):.3f} ms, "
        f"p99 {1e3 * percentile(further, 0.99):.3f} ms",
        flush=True,
    )


def measure_ours(plan: str, lengths: Sequence[int]) -> dict[str, Any]:
    """The session's report in the end."""
    with open_session(plan, device="cuda") as session:
        for length in lengths:
            first, _ = ours(session, length, 2)
            print(f"hjgc: {length} tokens, before anything is captured: first {1e3 * first:.2f} ms", flush=True)
        session.wait_captured(300)
        for length in lengths:
            measure("hjgc", length, lambda length=length: ours(session, length, STEPS), ANSWERS)
        return session.report()


def measure_peer(model: str, lengths: Sequence[int], provider: str, answers: int, steps: int) -> dict[str, Any]:
    """What the peer says of itself. Its memory is free again afterwards."""
    threads = os.cpu_count() or 1
    peer = OrtPeer(model=model, threads=threads, provider=provider)
    who = "ONNX Runtime, CUDA" if provider == "cuda" else f"ONNX Runtime, {threads} threads"

    def answer(length: int) -> Times:
        given = peer.answer(prompt(length), steps + 1)
        return given.first, given.further

    try:
        for length in lengths:
            measure(who, length, lambda length=length: answer(length), answers)
        return peer.details()
    finally:
        peer.close()


def has_cuda() -> bool:
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan")
    parser.add_argument("model")
    parser.add_argument("lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--no-cpu", action="store_true", help="leave out ONNX Runtime's CPU provider, which is slow")
    given = parser.parse_args()
    report = measure_ours(given.plan, given.lengths)
    if has_cuda():
        try:
            print(json.dumps(measure_peer(given.model, given.lengths, "cuda", ANSWERS, STEPS)))
        except InputError as error:  # what was measured before, and the rest, are not lost
            print(f"note: {error}")
    if not given.no_cpu:
        print(json.dumps(measure_peer(given.model, given.lengths, "cpu", CPU_ANSWERS, CPU_STEPS)))
    print(json.dumps({"islands": report["islands"], "totals": report["totals"]}))


if __name__ == "__main__":
    main()
