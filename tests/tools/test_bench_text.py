"""Is a measurement on a GPU read as it is meant?"""

from __future__ import annotations

from typing import Any

import pytest

from hjgc.tools.benching import device_text
from hjgc.tools.benching.alone import Cell, Found
from hjgc.tools.benching.device_result import result
from hjgc.tools.benching.floors import Limits
from hjgc.tools.benching.fresh import judged
from hjgc.tools.benching.plot import png
from hjgc.tools.benching.settings import Settings
from hjgc.tools.peers.peer import Answer, Series
from tests.plans import small_plan

GOLDEN = """\
p.hjg: small, float16, 9.0 MiB of weights, context 48
A card (sm_90), 1.0 GiB, driver 13.0
A processor, Linux, Python 3.11, hjgc 0.1.0, torch 2.11, 2026-11-28T12:00:00+00:00
limits, measured first: read 0 GB/s, copy 0 GB/s, bf16 products 3 TFLOP/s, host to device 0.0 GB/s
note: a note
a step reads 0.000 GB of weights: 2.816 ms; 64 B a cached token

milliseconds (x the floor); TTFT: from the prompt's ids on the host to the first token's id on the host
prompt   floor   system                 p50             p90             p99             max   p99/p50            first   replayed   tokens
───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    10    2.96   hjgc graph    4.000 (1.35)    6.000 (2.03)    6.000 (2.03)    6.000 (2.03)     1.500     8.000 (2.70)        4/4   the same
    16    3.06   hjgc graph    5.000 (1.64)    7.500 (2.45)    7.500 (2.45)    7.500 (2.45)     1.500    10.000 (3.27)        4/4   the same
    16    3.06   eager        20.000 (6.54)   30.000 (9.82)   30.000 (9.82)   30.000 (9.82)     1.500   40.000 (13.09)        0/4   differ at 1

milliseconds (x the floor) from token to token on the host; read: the floor's share of the time
context   floor   system                p50            p90            p99            max   p99/p50      read   replayed   tokens
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
     16    3.34   hjgc graph   3.000 (0.90)   3.750 (1.12)   3.750 (1.12)   3.750 (1.12)     1.250   111.5 %        4/4   the same

first request of a process   system              TTFT   x warm p50
──────────────────────────────────────────────────────────────────
                 10 tokens   hjgc graph   6.00 (2.03)         1.50

hjgc graph while every graph is built and checked behind the requests (1 fresh process, 5 graphs of 5.0 MiB each time, 0.75 s of work in 2.00 s)
figure    replayed    p50    p99    max   plain    p50    p99   idle     p50     p99     max
────────────────────────────────────────────────────────────────────────────────────────────
TTFT 10          1   4.40   4.40   4.40       1   6.00   6.00      3    4.00    4.00    4.00
token            1   2.20   2.20   2.20       1   3.00   3.00      3    2.00    2.00    2.00
p99 of what was replayed meanwhile, as a multiple of the idle p99: TTFT 1.100 (each over the idle median of its length), token 1.100
hjgc graph: segments afterwards: 5 PROMOTED

start-up, ms            interpreter   import   plan   device   weights   first token   all, to first token
──────────────────────────────────────────────────────────────────────────────────────────────────────────
hjgc graph                    20.00   100.00   5.00    30.00     50.00          8.00                178.00
eager                         20.00   100.00                     50.00          8.00                178.00
hjgc graph, 10 tokens         20.00   100.00                     50.00          8.00                178.00
note: not measured: hjgc jit: no kernels
note: not measured: hjgc graph: it stopped
hjgc graph: takes 10.0 MiB of the device, 1.0 MiB beyond weights and cache (9.0 MiB): arena 4.0 KiB, graphs 2.0 KiB
hjgc graph: segments that ran: 1 PROMOTED; graphs hold 2.0 KiB
"""  # noqa: E501


def cell(first: float, rest: float, tokens: tuple[int, ...], replayed: int = 4) -> Cell:
    series = Series((first, first, 1.5 * first), (rest, rest, 1.25 * rest), (tokens[:2],), replayed, 4)
    return Cell(Answer(2 * first, (rest,) * (len(tokens) - 1), tokens), series)


def event(first: float, replayed: bool) -> dict[str, Any]:
    return {"length": 10, "first": first, "further": [first / 2], "replayed": replayed}


@pytest.fixture
def shown() -> dict[str, Any]:
    start = {"import": 100.0, "weights": 50.0, "other": 20.0, "first_request": 8.0, "to_first_token": 178.0}
    graph = Found(
        versions={"hjgc": "0.1.0"},
        startup_ms={"plan": 5.0, "device": 30.0} | start,
        prompts={10: cell(0.004, 0.003, (1, 2, 3)), 16: cell(0.005, 0.003, (4, 5, 6))},
        contexts={16: cell(0.005, 0.003, (4, 5, 6))},
        details={
            "segments": [{"phase": "decode", "key": 1, "state": "PROMOTED", "why": None}],
            "graph_bytes": 2048,
            "memory": {"arena": 4096, "graphs": 2048, "staging": 1},
            "device_memory": {"taken": 10 << 20, "weights_and_cache": 9 << 20, "beyond": 1 << 20},
        },
    )
    eager = Found(
        versions={"torch": "2.11"}, startup_ms=start, prompts={16: cell(0.02, 0.02, (4, 7, 6), 0)}, settled=True
    )
    found = {"hjgc graph": graph, "hjgc jit": Found(unavailable="hjgc jit: no kernels"), "eager": eager}
    settings = Settings((10, 16), 2, 3, 1, 0, 50, contexts=(16,), cold=1, capturing=1)
    run = {"building": [event(0.0044, True), event(0.006, False)], "idle": [event(0.004, True)] * 3}
    run |= {"settled": True, "seconds": 2.0, "worker": {"builds": 5, "build_seconds": 0.25, "check_seconds": 0.5}}
    run |= {"states": {"PROMOTED": 5}, "graph_bytes": 5 << 20, "device_memory": None}
    return {
        "plan": {
            "path": "p.hjg", "model": "small", "compute_dtype": "float16", "weight_bytes": 9 << 20, "context": 48,
        },
        "machine": {
            "processor": "A processor", "system": "Linux", "python": "3.11",
            "cuda": {"driver": "13.0", "devices": [{"name": "A card", "target": "sm_90", "bytes": 1 << 30}]},
        },
        "date": "2026-11-28T12:00:00+00:00",
        "load_average": {"before": None, "after": None},
        **result(small_plan(), Limits(2e6, 1.9e6, 1e6, 3e12, ("a note",)), settings, found),
        "cold": [{"system": "hjgc graph", "length": 10, "ttft_ms": 6.0, "replayed": 0, "ran": 4, "startup_ms": start}],
        "capturing": judged("hjgc graph", [run]),
        "launches": None,
        "problems": ["hjgc graph: it stopped"],
        "interrupted": None,
    }  # fmt: skip


def test_every_figure_stands_beside_its_floor(shown: dict[str, Any]):
    assert "\n".join(device_text.text(shown)) + "\n" == GOLDEN


def test_what_was_not_asked_for_leaves_no_empty_table(shown: dict[str, Any]):
    lines = "\n".join(device_text.text(shown | {"decode": [], "cold": [], "capturing": None}))
    assert "first request of a process" not in lines and "token to token" not in lines and "idle" not in lines


def test_the_picture_is_a_png_whatever_was_measured(shown: dict[str, Any]):
    for rows in (shown, shown | {"decode": []}, shown | {"rows": [], "decode": []}):
        assert png(rows).startswith(b"\x89PNG\r\n")
