"""Does a plan touch only memory that is its own? A program to run under a memory checker:

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/gpu/sanitized.py PLAN

Prompts of awkward lengths, each with a few steps, plainly and from graphs, greedy and sampled.
"""

from __future__ import annotations

import sys

import numpy as np

from hjgc.runtime.opening import open_session

LENGTHS = (1, 17, 33, 65, 129, 257, 511, 530)
SAMPLING = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed_low": 9}


def main(plan: str) -> None:
    rng = np.random.default_rng(0)
    with open_session(plan, device="cuda") as session:
        vocabulary = session.plan.model.vocab_size
        for sampling in ({}, SAMPLING):
            for length in LENGTHS:
                with session.request() as request:
                    request.prefill(rng.integers(3, vocabulary, length).tolist(), sampling)
                    for _ in range(3):
                        request.decode()
            session.wait_captured(300)
        totals = session.report()["totals"]
        print({name: totals[name] for name in ("hits", "plain_runs", "promoted", "quarantined", "refused")})


if __name__ == "__main__":
    main(sys.argv[1])
