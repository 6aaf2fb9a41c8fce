"""How long does a prompt take at LLaMA-2-7B's shapes with the products for Hopper, and which tiles are the fastest?

A program. `measure_hopper.py [LENGTH ...]`: whole passes as in `measure_prefill.py`, with these products in place of
Triton's, then each product alone, beside cuBLAS. `measure_hopper.py --search [TOP ...]`: for ranges that end there,
other tiles of each product in the whole pass, kept where they make it faster; prints what `hopper_tiles.H200` holds.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from hjgc.compiler.build import Built
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import AxisValue
from hjgc.compiler.kernels.hopper_tiles import RANGES, choose_hopper, other_tiles, range_of
from hjgc.compiler.kernels.prefill_tiles import tiles
from hjgc.plan_format.sizes import evaluate
from tests.gpu.hopper_device import MappedCall
from tests.gpu.measure_prefill import LENGTHS, REPEATS, WORKERS, build_one, cublas, floor, key
from tests.gpu.prefill_device import Call, Code, Graph, driver, load, time_replays
from tests.gpu.prefill_step import (
    CAPACITY,
    EPSILON,
    FIXED,
    HEADS,
    HIDDEN,
    INNER,
    MOST_ROWS,
    SIZE,
    Layer,
    Network,
    axes_of,
)

Axes = dict[str, AxisValue]
Choice = tuple[str, Axes]
HEAD_DIMS = {"Q": HEADS, "G": HEADS, "D": SIZE, "C": CAPACITY}
PRODUCTS: Mapping[str, tuple[str, dict[str, int]]] = {
    "attention_inputs": ("attention_inputs", {"N": 3 * HIDDEN, "H": HIDDEN} | HEAD_DIMS),
    "output": ("linear_parts", {"N": HIDDEN, "K": HIDDEN}),
    "gated_linear": ("gated_linear", {"N": 2 * INNER, "H": HIDDEN}),
    "down": ("linear_parts", {"N": HIDDEN, "K": INNER}),
}
SHORT = 8
"""Layers of a chain of one product: more than the L2 cache holds."""
TRIED = 14
"""Other tiles of each product that a search measures."""


def chosen(rows: int) -> dict[str, Choice]:
    """The products' templates and axes for the range of so many rows."""
    found = {s: choose_hopper(op, dims, "float16", (), rows, MOST_ROWS) for s, (op, dims) in PRODUCTS.items()}
    return {step: choice for step, choice in found.items() if choice is not None}


def others(rows: int, products: Mapping[str, Choice]) -> dict[str, dict[str, Choice]]:
    """The kernels that are left to Triton, for the same rows: by step, and the joins by the product they follow."""
    triton = tiles(rows, "sm_90")
    made: dict[str, Choice] = {}
    for step in ("attention", "head"):
        made[step] = (FIXED[step][0], axes_of(step, {**triton[step], "pdl": True}))
    joins = {
        step: ("prefill_join", axes_of("join", {**triton["join"], "splits": products[step][1]["splits"], "pdl": True}))
        for step in ("output", "down")
    }
    return {"plain": made, "join": joins}


class Codes:
    """Variants on the device, built by a pool of processes, many at a time."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._built: dict[str, Built] = {}
        self._codes: dict[str, Code] = {}

    def build(self, choices: Iterable[Choice]) -> None:
        wanted = {key(*choice): choice for choice in choices if key(*choice) not in self._built}
        if wanted:
            names, axes = zip(*wanted.values(), strict=True)
            built = self._pool.map(build_one, names, axes, ["sm_90"] * len(wanted), chunksize=2)
            self._built |= zip(wanted, built, strict=True)

    def code(self, name: str, axes: Axes) -> Code:
        known = key(name, axes)
        if known not in self._codes:
            self.build([(name, axes)])
            self._codes[known] = load(self._built[known])
        return self._codes[known]


class Pass:
    """Whole passes, and chains of one product, over one network."""

    def __init__(self, network: Network, codes: Codes) -> None:
        self.network, self.codes = network, codes

    def time(self, products: Mapping[str, Choice], length: int, repeats: int = REPEATS) -> list[float]:
        """Milliseconds of a prompt of `length` rows, sorted."""
        return _timed(self.calls(products, length), repeats)

    def time_alone(self, step: str, choice: Choice, length: int) -> float:
        """Microseconds of one product, in a chain of a few layers' own."""
        count, layers = _field(length), self.network.layers[:SHORT]
        calls = [self._product(step, choice, layer, self.network.caches[i], count) for i, layer in enumerate(layers)]
        times = _timed(calls, 7)
        return times[len(times) // 2] / len(calls) * 1e3

    def calls(self, products: Mapping[str, Choice], length: int) -> list[Call]:
        network, count = self.network, _field(length)
        rest = others(length, products)
        made: list[Call] = []
        for layer, cache in zip(network.layers, network.caches, strict=True):
            made.append(self._product("attention_inputs", products["attention_inputs"], layer, cache, count))
            values = [network.query, cache[0], cache[1], network.attended, network.start, count, SIZE**-0.5]
            made.append(self._call(rest["plain"]["attention"], values, range_of(length)))
            made.append(self._product("output", products["output"], layer, cache, count))
            made.append(self._join(rest["join"]["output"], count, length))
            made.append(self._product("gated_linear", products["gated_linear"], layer, cache, count))
            made.append(self._product("down", products["down"], layer, cache, count))
            made.append(self._join(rest["join"]["down"], count, length))
        values = [network.normal[length - 1], network.head, network.logits, network.one]
        return [*made, self._call(rest["plain"]["head"], values, 1)]

    def _join(self, choice: Choice, count: torch.Tensor, length: int) -> Call:
        network = self.network
        network.x.reverse()
        values = [network.parts, network.x[1], network.norm, network.x[0], network.normal, count, EPSILON]
        return self._call(choice, values, range_of(length))

    def _call(self, choice: Choice, values: list[Any], rows: int) -> Call:
        name, axes = choice
        letters = {"M": rows, "N": int(axes.get("rows", 0))}
        x, y, z = (evaluate(part, {}) for part in template(name).grid(letters, axes))
        return Call(self.codes.code(name, axes), (x, y, z), values)

    def _product(self, step: str, choice: Choice, layer: Layer, cache: torch.Tensor, count: torch.Tensor) -> MappedCall:
        network, (name, axes) = self.network, choice
        values = {
            "attention_inputs": [
                network.normal, layer.inputs, network.cos, network.sin, network.query, cache[0], cache[1],
                network.start, count,
            ],
            "output": [network.attended, layer.output, network.parts, count],
            "gated_linear": [network.normal, layer.gated, network.inner, count],
            "down": [network.inner, layer.down, network.parts, count],
        }  # fmt: skip
        x, y, z = (evaluate(part, {}) for part in template(name).grid({}, axes))
        return MappedCall(self.codes.code(name, axes), name, axes, (x, y, z), values[step])


def _timed(calls: Sequence[Call], repeats: int) -> list[float]:
    graph = Graph(calls)
    times = time_replays(graph.replay, repeats)
    graph.drop()
    return times


def _field(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int32, device="cuda")


def show(measure: Pass, lengths: Iterable[int]) -> None:
    print(f"{'length':>6} {'p50':>7} {'p99':>7} {'floor':>7} {'ratio':>6} {'cuBLAS products':>16}  alone, us")
    for length in lengths:
        products = chosen(length)
        times = measure.time(products, length)
        alone = " ".join(f"{step} {measure.time_alone(step, products[step], length):.1f}" for step in PRODUCTS)
        middle, last = times[len(times) // 2], times[-1]
        line = f"{length:6} {middle:7.3f} {last:7.3f} {floor(length):7.3f} {middle / floor(length):6.2f}"
        print(f"{line} {cublas(measure.network, length):16.3f}  {alone}", flush=True)


def search(measure: Pass, top: int) -> None:
    """Prints the best products of the range that ends at `top`, found one product after another."""
    best = chosen(top)
    shortest = first = measure.time(best, top, 9)[4]
    for step, (op, _) in PRODUCTS.items():
        name, axes = best[step]
        tried = [(name, {**axes, **tile}) for tile in other_tiles(op, axes, TRIED)]
        measure.codes.build(tried)
        for choice in tried:
            time = measure.time({**best, step: choice}, top, 7)[3]
            if time < 0.997 * shortest:
                best, shortest = {**best, step: choice}, time
    print(f"{top}: {first:.3f} -> {shortest:.3f} ms, {shortest / floor(top):.2f} of the floor")
    for step, (_, axes) in best.items():
        print(f"    {step}: {_row(axes)}", flush=True)


def _row(axes: Axes) -> str:
    """As the table of tiles says it."""
    names = ("warpgroups", "slabs", "block_n", "stages", "share", "lead", "splits", "height")
    values = [str(axes.get(name, 0)).replace("'", '"') for name in names]
    values[4] = f'"{values[4]}"'
    while values[-1] == "0" and len(values) > 6:
        values.pop()
    return f"_tile({', '.join(values)})"


def main(arguments: list[str]) -> None:
    driver()
    numbers = [int(argument) for argument in arguments if argument.isdigit()]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        measure = Pass(Network(), Codes(pool))
        if "--search" in arguments:
            for top in numbers or RANGES:
                search(measure, top)
            return
        products = {length: chosen(length) for length in numbers or LENGTHS}
        rest = [others(length, found) for length, found in products.items()]
        measure.codes.build(choice for found in products.values() for choice in found.values())
        measure.codes.build(choice for found in rest for kernels in found.values() for choice in kernels.values())
        show(measure, products)


if __name__ == "__main__":
    main(sys.argv[1:])
