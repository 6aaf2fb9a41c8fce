"""How long does the device take for launches of a plan, also with variants that the plan does not have?"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.structs import Plan
from hjgc.runtime.backends.cuda_code import Loaded
from hjgc.runtime.backends.cuda_driver import Driver, Handle
from hjgc.runtime.backends.cuda_launch import GraphBuilder, Kernels
from hjgc.runtime.backends.cuda_memory import DeviceMemory

WARM_UP = 3


class Timing:
    """Graphs of launches over the memory of an open plan, each replay timed alone by events."""

    def __init__(
        self, driver: Driver, memory: DeviceMemory, loaded: Sequence[Loaded | None], target: str, stream: Handle
    ) -> None:
        self._driver, self._memory, self._loaded, self._target, self._stream = driver, memory, loaded, target, stream

    @contextmanager
    def graph(
        self, plan: Plan, phase: str, launches: Sequence[int], rows: int, added: Mapping[int, BuiltVariant]
    ) -> Generator[Handle]:
        """An executable graph of launches of `plan`, which is the open one but for variants that come after its own:
        those are `added`, by number. Raises DriverError for what the driver refuses."""
        with ExitStack() as stack:
            self._driver.make_current()
            loaded = list(self._loaded)
            for number, built in sorted(added.items()):
                loaded += [None] * (number + 1 - len(loaded))
                module = self._driver.load_module(built.code)
                stack.callback(self._driver.unload_module, module)
                function = self._driver.function(module, built.entry, built.shared_bytes)
                loaded[number] = Loaded(function, built.threads, built.shared_bytes)
            kernels = Kernels(self._driver, plan, self._target, loaded, self._memory)
            graph = GraphBuilder(kernels, plan.phase(phase)).build(launches, rows)
            stack.callback(self._driver.drop_graph, graph)
            executable = self._driver.instantiate(graph, self._stream)
            stack.callback(self._driver.drop_executable, executable)
            stack.callback(self._driver.wait, self._stream)
            yield executable

    def replay(self, executable: Handle, repeats: int, prepare: Callable[[], None]) -> list[float]:
        """Milliseconds of so many replays, after a few that do not count, each prepared for."""
        begin, end = self._driver.make_timer(), self._driver.make_timer()
        times: list[float] = []
        try:
            for _ in range(repeats + WARM_UP):
                prepare()
                self._driver.wait(self._stream)
                self._driver.record(begin, self._stream)
                self._driver.replay(executable, self._stream)
                self._driver.record(end, self._stream)
                self._driver.wait_event(end)
                times.append(self._driver.milliseconds(begin, end))
        finally:
            for event in (begin, end):
                self._driver.drop_event(event)
        return times[WARM_UP:]
