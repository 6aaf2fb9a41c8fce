"""How does a test launch a template's cubin over tensors that torch holds: once, or as a graph of many launches?"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from hjgc.compiler.build import Built, build
from hjgc.compiler.kernels import template
from hjgc.compiler.kernels.declaration import Axes
from hjgc.runtime.backends.cuda_driver import Driver, Handle, LaunchShape
from hjgc.runtime.backends.cuda_launch import PACKING, SLOT

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Code:
    """A variant on the device."""

    function: Handle
    parameters: tuple[str, ...]
    threads: int
    shared_bytes: int
    pdl: bool


class Call:
    """One launch with its arguments packed; what they point to must stay alive as long as the call. `overlaps`: in a
    graph it may start before the call ahead of it has ended."""

    def __init__(self, code: Code, grid: Grid, arguments: Sequence[Any], *, overlaps: bool = True) -> None:
        self.overlaps = overlaps and code.pdl
        self.code, self.shape = code, LaunchShape(grid, code.threads, code.shared_bytes)
        self.kept = [argument for argument in arguments if argument is not None]
        self._slots = ctypes.create_string_buffer(SLOT * len(code.parameters))
        first = ctypes.addressof(self._slots)
        self._array = (ctypes.c_uint64 * len(code.parameters))(*range(first, first + len(self._slots), SLOT))
        self.parameters = ctypes.addressof(self._array)
        for i, (kind, argument) in enumerate(zip(code.parameters, self.kept, strict=False)):
            value = argument.data_ptr() if isinstance(argument, torch.Tensor) else argument
            struct.pack_into(PACKING[kind], self._slots, SLOT * i, value)


@cache
def driver() -> Driver:
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    return Driver()


def load(built: Built) -> Code:
    module = driver().load_module(built.cubin)
    function = driver().function(module, built.entry, built.shared_bytes)
    return Code(function, built.parameters, built.threads, built.shared_bytes, built.pdl)


_loaded: dict[str, Code] = {}


def run(name: str, axes: Axes, grid: Grid, arguments: Sequence[Any]) -> None:
    """Build the template for this device if need be, launch it on torch's stream, and wait."""
    axes = dict(axes) | {"pdl": axes["pdl"] is True and driver().target >= "sm_90"}
    template(name).check(axes)
    code = _loaded.get(key := repr((name, sorted(axes.items()))))
    if code is None:
        code = _loaded[key] = load(build(name, axes, driver().target))
    call = Call(code, grid, arguments)
    stream = torch.cuda.current_stream().cuda_stream
    driver().launch(driver().configure(call.shape, code.pdl, stream), code.function, call.parameters)
    torch.cuda.synchronize()


class Graph:
    """Calls one after another, each starting early where it waits by itself."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls, self._stream = list(calls), driver().make_stream()
        graph = driver().make_graph()
        last: tuple[Handle, Call] | None = None
        for call in self._calls:
            before, early = ([last[0]], [last[1].code.pdl and call.overlaps]) if last else ([], [])
            what = (call.code.function, call.parameters)
            last = driver().add_kernel(graph, call.shape, what, before, early), call
        self._executable = driver().instantiate(graph, self._stream)
        driver().drop_graph(graph)

    def replay(self, stream: int) -> None:
        driver().replay(self._executable, stream)

    def drop(self) -> None:
        driver().drop_executable(self._executable)
        driver().drop_stream(self._stream)


def time_replays(replay: Callable[[int], None], repeats: int) -> list[float]:
    """Milliseconds of isolated replays, sorted: the device is idle before each."""
    times: list[float] = []
    stream = torch.cuda.current_stream().cuda_stream
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin.record()
        replay(stream)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)
