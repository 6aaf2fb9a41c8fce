"""How long does a prompt take at LLaMA-2-7B's shapes, beside the floor and beside cuBLAS for the same products?

A program: `measure_prefill.py [LENGTH ...]`. Every pass is one graph of all launches over random weights, timed with
events from an idle device; one per length, under the first bucket that serves it. Prints a table in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import torch

from hjgc.compiler.build import Built, build
from hjgc.compiler.kernels.declaration import Axes
from hjgc.compiler.kernels.prefill_tiles import RANGES, range_of, tiles
from tests.gpu.prefill_device import Code, Graph, driver, load, time_replays
from tests.gpu.prefill_step import FIXED, Network, axes_of

LENGTHS = (10, 17, 33, 50, 65, 100, 129, 200, 257, 300, 400, 511)
BYTES_MS, FLOP, RATE = 2.889, 2 * 6.476e9, 790e12
WORKERS = 14
REPEATS = 30


def floor(length: int) -> float:
    """Milliseconds: the weights read once, or the arithmetic at the measured rate, whichever is longer."""
    return max(BYTES_MS, FLOP * length / RATE * 1e3)


def variants(target: str) -> dict[str, tuple[str, Axes]]:
    """Every variant that some length needs, by key."""
    wanted: dict[str, tuple[str, Axes]] = {}
    for top in RANGES:
        for step, tile in tiles(top, target).items():
            splits = {1: tile} if step != "join" else {s: {**tile, "splits": s} for s in range(1, 7)}
            for axes in (axes_of(step, one) for one in splits.values()):
                wanted[key(FIXED[step][0], axes)] = (FIXED[step][0], axes)
    return wanted


def key(name: str, axes: Axes) -> str:
    return repr((name, sorted(axes.items())))


def build_one(name: str, axes: Axes, target: str) -> Built:
    return build(name, axes, target)


def cublas(network: Network, length: int) -> float:
    """Milliseconds of all layers' products through torch, recorded as one graph."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _products(network, length, 1)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            _products(network, length, len(network.layers))

    times = time_replays(lambda stream: graph.replay(), REPEATS)
    return times[len(times) // 2]


def _products(network: Network, length: int, layers: int) -> None:
    for layer in network.layers[:layers]:
        for x, weight in ((network.normal, layer.inputs), (network.attended, layer.output)):
            torch.mm(x[:length], weight.T)
        torch.mm(network.normal[:length], layer.gated.T)
        torch.mm(network.inner[:length], layer.down.T)


def main(lengths: tuple[int, ...]) -> None:
    target = driver().target
    wanted = variants(target)
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        names, axes = zip(*wanted.values(), strict=True)
        built = dict(zip(wanted, pool.map(build_one, names, axes, [target] * len(wanted)), strict=True))
    codes: dict[str, Code] = {}

    def code(name: str, axes: Axes) -> Code:
        known = key(name, axes)
        if known not in codes:
            codes[known] = load(built[known])
        return codes[known]

    network = Network()
    print(f"{'length':>6} {'p50':>7} {'p99':>7} {'floor':>7} {'ratio':>6} {'cuBLAS products':>16}")
    for length in lengths:
        graph = Graph(network.calls(code, tiles(length, target), length, range_of(length)))
        times = time_replays(graph.replay, REPEATS)
        graph.drop()
        middle, last = times[len(times) // 2], times[-1]
        line = f"{length:6} {middle:7.3f} {last:7.3f} {floor(length):7.3f} {middle / floor(length):6.2f}"
        print(f"{line} {cublas(network, length):16.3f}", flush=True)


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or LENGTHS)
