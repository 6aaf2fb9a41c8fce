"""When is a token late, and what did the card do then?

    measure_tail.py PLAN [CONTEXT ...]      the plan's weights beside it

Twenty answers of 64 tokens from each context on. Prints the median step, then for each answer with steps that took a
tenth longer which these were (`12-30`), their median, and the clocks of the card and the reasons it gives for them,
sampled every 20 ms while the answer ran.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

from hjgc.runtime.opening import open_session

CONTEXTS = (16, 128, 1024)
ANSWERS, STEPS, LATE = 20, 64, 1.1
QUERY = "--query-gpu=clocks.sm,clocks.mem,power.draw,clocks_event_reasons.active"


@contextmanager
def watched(samples: list[tuple[float, str]]) -> Generator[None]:
    """What the card says meanwhile, with the time at which it said so."""
    command = ["nvidia-smi", QUERY, "--format=csv,noheader", "-lms", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield
        finally:
            process.terminate()
            now = time.perf_counter()
            lines = [line.strip() for line in process.stdout]
            samples.extend((now - 0.02 * (len(lines) - i), line) for i, line in enumerate(lines))


def answer(session: Any, context: int, seed: int) -> list[tuple[float, float]]:
    """When each step ended, and how long it took in milliseconds."""
    ids = np.random.default_rng([context, seed]).integers(0, session.plan.model.vocab_size, context).tolist()
    steps: list[tuple[float, float]] = []
    with session.request() as request:
        request.prefill(ids, {})
        before = time.perf_counter()
        for _ in range(STEPS):
            request.decode()
            now = time.perf_counter()
            steps.append((now, (now - before) * 1e3))
            before = now
    return steps


def runs(numbers: Sequence[int]) -> str:
    """`3, 7-9`"""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def show(session: Any, context: int) -> None:
    samples: list[tuple[float, str]] = []
    answer(session, context, 0)
    session.wait_captured(60)
    with watched(samples):
        answers = [answer(session, context, seed) for seed in range(ANSWERS)]
    usual = median(took for steps in answers for _, took in steps)
    print(f"context {context}: median {usual:.3f} ms")
    for number, steps in enumerate(answers):
        late = [i for i, (_, took) in enumerate(steps) if took > LATE * usual]
        if late:
            first, last = steps[0][0], steps[-1][0]
            said = dict.fromkeys(line for when, line in samples if first <= when <= last)
            typical = median(steps[i][1] for i in late)
            print(f"  answer {number}: steps {runs(late)} took {typical:.3f}; {' | '.join(said)}", flush=True)


def main(plan: str, contexts: Sequence[int]) -> None:
    with open_session(plan, device="cuda") as session:
        for context in contexts:
            show(session, context)
        print({name: session.report()["launch_ahead"][name] for name in ("steps", "overruns", "failed")})


if __name__ == "__main__":
    main(sys.argv[1], tuple(map(int, sys.argv[2:])) or CONTEXTS)
