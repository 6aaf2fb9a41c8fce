"""What can this device do at best: read, copy, multiply, be fed by the host?

`python -m hjgc.tools.benching.limits` measures it in a process of its own, which gives all memory back when it ends,
and prints a line of JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from hjgc.plan_format.errors import HjgcError, RunError
from hjgc.tools.benching import read_kernel
from hjgc.tools.benching.floors import Limits
from hjgc.tools.peers.client import environment

GIB = 1 << 30
READ_BYTES, LINK_BYTES = 4 * GIB, GIB // 2
ROUNDS, CALLS = 20, 6
MATRIX = 8192
NO_READER = "no kernel that reads: {}; the floors take the copy's rate, which is lower"
NO_MATRIX = "no matrix rate: {}; the floors of prompts count reading only"


def best(work: Callable[[], None], wait: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one `work` in the fastest of ROUNDS rounds of CALLS, each waited for."""
    work()
    wait()
    rounds: list[float] = []
    for _ in range(ROUNDS):
        began = clock()
        for _ in range(CALLS):
            work()
        wait()
        rounds.append((clock() - began) / CALLS)
    return min(rounds)


def measure(card: Any, matrix: Callable[[], tuple[float | None, str | None]]) -> Limits:
    """All limits of a `card.Card`. `matrix` comes last: its library takes memory that it keeps."""
    size = min(READ_BYTES, card.memory()[0] // 3) // read_kernel.BLOCK_BYTES * read_kernel.BLOCK_BYTES
    if size == 0:
        raise RunError("expected free memory on the device to measure it with, found none; end what else uses it")
    source, target = card.allocate(size), card.allocate(size)
    card.fill(source, size)
    notes: list[str] = []
    read = 0.0
    if card.no_reader is None:
        reader = card.reader(source, size)
        read = size / best(lambda: card.read(reader), card.wait)
    else:
        notes.append(NO_READER.format(card.no_reader))
    copy = 2 * size / best(lambda: card.copy(target, source, size), card.wait)
    link = _link(card, target, min(LINK_BYTES, size))
    card.free(source)
    card.free(target)
    rate, why = matrix()
    if why is not None:
        notes.append(NO_MATRIX.format(why))
    return Limits(max(read, copy), copy, link, rate, tuple(notes))


def _link(card: Any, target: int, size: int) -> float:
    pinned = card.pinned(size)
    try:
        return size / best(lambda: card.upload(target, pinned), card.wait)
    finally:
        card.free_pinned(pinned)


def matrix_rate() -> tuple[float | None, str | None]:
    """bf16 operations per second of torch's product of two square matrices; or why there is none."""
    if find_spec("torch") is None:
        return None, "torch is not installed"
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return None, "the torch installed here has no CUDA"
        return product_rate(torch, "cuda", MATRIX, torch.cuda.synchronize), None
    except (ImportError, OSError, RuntimeError) as error:
        return None, " ".join(str(error).split())


def product_rate(torch: Any, device: str, size: int, wait: Callable[[], None]) -> float:
    """Of random numbers: the power a product of zeros does not need lets the clock run higher."""
    one, other = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(one)

    def multiply() -> None:
        torch.mm(one, other, out=out)

    return 2 * size**3 / best(multiply, wait)


def measured() -> Limits:
    """The limits, from a process of its own. Raises HjgcError with its word where it fails."""
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "hjgc.tools.benching.limits"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(1),
        encoding="utf-8",
        errors="replace",
    )
    return parsed(ran.stdout, ran.stderr, ran.returncode)


def parsed(out: str, err: str, code: int) -> Limits:
    """What the process printed last. Raises HjgcError."""
    lines = out.strip().splitlines()
    if code != 0 or not lines:
        words = (err.strip().splitlines() or [""])[-1]
        raise HjgcError(f"expected the device's limits, found their measurement ended with exit code {code}: {words}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise HjgcError(f"the device's limits cannot be measured: {answer['error']}")
    return Limits(**answer | {"notes": tuple(answer["notes"])})


def main() -> None:
    from hjgc.tools.benching.card import Card

    try:
        answer = dataclasses.asdict(measure(Card(), matrix_rate))
    except HjgcError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
