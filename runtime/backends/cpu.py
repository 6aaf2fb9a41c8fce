"""How does a plan run on the CPU? Each launch is its op's reference, in torch; a graph is the list of bound calls.

Every path computes true lengths (padding would change torch's bits), so a graph for a bucket binds its calls anew for a
length that it has not met lately. A graph of a function has one tuple of sizes.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ops import all_ops
from hjgc.plan_format.ops.declaration import Op
from hjgc.plan_format.sizes import evaluate
from hjgc.plan_format.structs import DTypes, IslandCall, Launch, Operand, Phase
from hjgc.runtime.backend import Callback, Ids, MemoryRef, Rows, Value, digest_of, sizes_of
from hjgc.runtime.backends.cpu_bound import BOUND, Call
from hjgc.runtime.backends.cpu_memory import (
    TORCH_DTYPES,
    allocate,
    check_memory,
    read_constants,
    read_weights,
    reserve,
)
from hjgc.runtime.island_sessions import Place
from hjgc.runtime.islands import IslandRun, Islands, Values, ends, island_launches
from hjgc.runtime.ort_values import host_value, in_bits, out_of_bits
from hjgc.runtime.parameters import Parameters

CALL_BYTES = 1024
"""What one bound call holds: the closure and its tensor views. An estimate, for the byte budget."""
LENGTHS_KEPT = 4

FLOAT32 = DTypes("float32", "float32", "float32", "float32", "float32")


class CpuGraph:
    """The bound calls of one segment, for the lengths it met last."""

    def __init__(self, phase: str, launches: Sequence[int], bucket: Rows) -> None:
        self.phase, self.launches, self.bucket = phase, tuple(launches), bucket
        self.calls: OrderedDict[Rows, list[Call]] = OrderedDict()

    @property
    def bytes(self) -> int:
        return len(self.launches) * CALL_BYTES * LENGTHS_KEPT


class CpuBackend:
    """The `cpu` target. `threads` is torch's number of threads for every thread that runs a launch (the bits depend on
    it); None keeps torch's own choice. Implements `hjgc.runtime.backend.FunctionBackend`."""

    name = "cpu"
    asynchronous = False
    thread_pools = True
    digests_on = "host"

    def __init__(self, plan_file: PlanFile, weights_root: Path, *, threads: int | None = None) -> None:
        plan = plan_file.plan
        check_memory(plan, plan_file.path)
        self._plan = plan
        self._threads = threads or torch.get_num_threads()
        self._prepared = threading.local()
        self._phases = {phase.name: phase for phase in plan.phases}
        self._arena = reserve(plan.arena_bytes) if plan.is_function else allocate((plan.arena_bytes,), "uint8")
        self._parameters = Parameters(plan.parameters)
        self._graph_bytes = 0
        self._tables: dict[str, list[Any]] = {
            "weight": read_weights(plan, weights_root, plan_file.path),
            "constant": read_constants(plan, plan_file.section("constants")),
            "state": [allocate(state.shape, state.dtype, clear=True) for state in plan.states],
            "parameters": [self._parameters.fields],
        }
        self._foreign = {phase.name: island_launches(phase) for phase in plan.phases}
        self._islands = Islands(plan_file) if plan.islands else None
        self._values = Values()
        self._states = {state.name: tensor for state, tensor in zip(plan.states, self._tables["state"], strict=True)}

    def write_parameters(self, values: Mapping[str, int | float], prompt: Ids | None = None) -> None:
        if prompt is not None:
            self.write_history(0, prompt)
        for name, value in values.items():
            setattr(self._parameters.fields, name, value)

    def write_history(self, offset: int, ids: Ids) -> None:
        self._states["history"][offset : offset + len(ids)] = torch.as_tensor(ids, dtype=torch.int32)

    def run(
        self,
        phase: str,
        launches: Sequence[int],
        tokens: Rows,
        stop: Callable[[], bool] | None = None,
        ahead: int | None = None,
    ) -> bool:
        del ahead  # every launch has ended when its call has
        self._enter()
        with torch.inference_mode():
            for number in launches:
                if stop is not None and stop():
                    return False
                if number in self._foreign[phase]:
                    if not self._bind_island(self._phases[phase], number, tokens).run(stop):
                        return False
                else:
                    bound = self._bind(self._phases[phase], number, tokens)
                    self._run_launch(self._phases[phase], number, bound)
        return True

    def _run_launch(self, phase: Phase, number: int, call: Call) -> None:
        """Raises RunError for a launch of a function that cannot be computed with these numbers."""
        if phase.entry != "function":
            call()
            return
        try:
            call()
        except Exception as error:  # an index out of range, memory that is not there
            launch, words = phase.launches[number], " ".join(str(error).split())[:400]
            raise RunError(f"launch {launch.name!r} ({launch.op}) failed: {words}") from error

    def write_arguments(self, phase: str, rows: Rows, values: Sequence[Value]) -> None:
        for port, value in zip(self._phases[phase].arguments, values, strict=True):
            if port.space == "value":
                self._values.put(phase, port.index, value)
            else:
                self._array(phase, port.index, rows)[...] = in_bits(value)

    def read_results(self, phase: str, rows: Rows) -> list[Value]:
        return [
            host_value(self._values.get(phase, port.index))
            if port.space == "value"
            else out_of_bits(self._array(phase, port.index, rows).copy(), port.type)
            for port in self._phases[phase].results
        ]

    def end_call(self) -> None:
        self._values.clear()

    def _array(self, phase: str, index: int, rows: Rows) -> NDArray[Any]:
        """A buffer of a function's, as an array that shares its memory; of bfloat16 as uint16."""
        return _shared(self._buffer(self._phases[phase], index, rows))

    def call_host(self, phase: str, launch: int, tokens: int, function: Callback) -> None:
        self._enter()
        self._bind(self._phases[phase], launch, tokens, process=function)()

    def build(
        self, phase: str, launches: Sequence[int], bucket: Rows, pause: Callable[[], None] | None = None
    ) -> CpuGraph:
        del pause  # it is one piece
        graph = CpuGraph(phase, launches, bucket)
        self._calls(graph, bucket)
        self._graph_bytes += graph.bytes
        return graph

    def graph_bytes(self, launches: int) -> int:
        return launches * CALL_BYTES * LENGTHS_KEPT

    def replay(self, graph: CpuGraph, tokens: Rows) -> None:
        self._enter()
        phase = self._phases[graph.phase]
        with torch.inference_mode():
            for number, call in zip(graph.launches, self._calls(graph, tokens), strict=True):
                self._run_launch(phase, number, call)

    def release(self, graph: CpuGraph) -> None:
        graph.calls.clear()
        self._graph_bytes -= graph.bytes

    def snapshot(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, NDArray[np.uint8]]:
        return {ref: _bytes(self._memory(ref, start, tokens)) for ref in refs}

    def digest(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, int]:
        return {ref: digest_of(data) for ref, data in self.snapshot(refs, start, tokens).items()}

    def restore(self, saved: Mapping[MemoryRef, NDArray[np.uint8]], start: int, tokens: Rows) -> None:
        for ref, data in saved.items():
            memory = self._memory(ref, start, tokens)
            if data.size:  # torch views no bytes as elements where there are none
                source = torch.from_numpy(data.copy())
                memory.copy_(source.view(memory.dtype).view(memory.shape))

    def fill(self, refs: Sequence[MemoryRef], start: int, tokens: Rows, value: int) -> None:
        for ref in refs:
            memory = self._memory(ref, start, tokens)
            memory.copy_(torch.full((memory.dtype.itemsize,), value, dtype=torch.uint8).view(memory.dtype)[0])

    def most_rows(self, phase: str, rows: int) -> int:
        del phase
        return rows

    def send_token(self) -> int:
        return int(self._states["sampled"][0])

    def read_token(self, ticket: int) -> int:
        return ticket

    def read_logits(self) -> NDArray[np.float32]:
        return self._states["logits"][0].float().numpy().copy()

    def memory(self) -> dict[str, int]:
        tables = (table for name, table in self._tables.items() if name != "parameters")
        lasting = sum(tensor.nbytes for table in tables for tensor in table) + self._parameters.data.nbytes
        return {"lasting": lasting, "arena": self._arena.nbytes, "graphs": self._graph_bytes, "staging": 0}

    def graphless(self, phase: str, launch: int, *, padded: bool) -> str:
        del phase, launch, padded
        return "the host computes it"

    def islands(self) -> dict[str, Any] | None:
        return None if self._islands is None else self._islands.counts.as_data()

    def uncounted(self) -> AbstractContextManager[None]:
        return nullcontext() if self._islands is None else self._islands.uncounted()

    def close(self) -> None:
        if self._islands is not None:
            self._islands.close()
        self._tables.clear()
        self._states.clear()
        self._values.clear()
        self._arena = allocate((1,), "uint8")

    def _enter(self) -> None:
        """Torch keeps the number of threads for each calling thread: give all of them the same."""
        if not getattr(self._prepared, "done", False):
            torch.set_num_threads(self._threads)
            self._prepared.done = True

    def _calls(self, graph: CpuGraph, tokens: Rows) -> list[Call]:
        calls = graph.calls.get(tokens)
        if calls is None:
            calls = [self._capture(self._phases[graph.phase], number, tokens) for number in graph.launches]
            graph.calls[tokens] = calls
            if len(graph.calls) > LENGTHS_KEPT:
                graph.calls.popitem(last=False)
        return calls

    def _capture(self, phase: Phase, number: int, tokens: Rows) -> Call:
        """The bound form of a launch where its op has one, else its reference bound."""
        bound = BOUND.get(phase.launches[number].op)
        call = self._bind(phase, number, tokens)
        if bound is None or tokens != 1 or self._plan.dtypes != FLOAT32:
            return call
        with torch.inference_mode():
            return bound(*call.args, **call.keywords)

    def _bind(self, phase: Phase, number: int, tokens: Rows, **extra: Any) -> partial[None]:
        """The reference of a launch with its operands for `tokens` rows."""
        launch = phase.launches[number]
        op = all_ops()[launch.op]
        given = {operand.role: operand for operand in launch.operands}
        if op.infer is not None:
            return self._bind_tensors(phase, launch, op, tokens)
        tensors = [self._operand(phase, given.get(role.name), tokens) for role in op.roles]
        return partial(op.reference, *tensors, **_attributes(launch), **extra)

    def _bind_tensors(self, phase: Phase, launch: Launch, op: Op, tokens: Rows) -> partial[None]:
        tensors = ([self._operand(phase, operand, tokens) for operand in part] for part in ends(launch))
        return partial(op.reference, *tensors, **_attributes(launch))

    def _bind_island(self, phase: Phase, number: int, tokens: Rows) -> IslandRun:
        launch = phase.launches[number]
        kernel = launch.kernels[self.name]
        assert isinstance(kernel, IslandCall) and self._islands is not None, "a plan with islands"

        def place(operand: Operand | None) -> Place:
            assert operand is not None, "islands leave nothing out"
            if operand.space == "value":
                return self._values.place(phase, operand.index)
            tensor = self._operand(phase, operand, tokens)
            return Place(memory=_shared(tensor), dtype=str(tensor.dtype).removeprefix("torch."))

        inputs, outputs = ends(launch)
        return IslandRun(self._islands, kernel.island, list(map(place, inputs)), list(map(place, outputs)))

    def _operand(self, phase: Phase, operand: Operand | None, tokens: Rows) -> Any:
        if operand is None:
            return None
        if operand.space != "buffer":
            return self._tables[operand.space][operand.index]
        return self._buffer(phase, operand.index, tokens)

    def _buffer(self, phase: Phase, index: int, tokens: Rows) -> torch.Tensor:
        buffer = phase.buffers[index]
        sizes = sizes_of(phase, tokens)
        shape = [evaluate(axis, sizes) for axis in buffer.shape]
        dtype = TORCH_DTYPES[buffer.dtype]
        count = math.prod(shape) * dtype.itemsize
        return self._arena[buffer.offset : buffer.offset + count].view(dtype).view(shape)

    def _memory(self, ref: MemoryRef, start: int, tokens: Rows) -> torch.Tensor:
        if ref.space == "parameters":
            return torch.from_numpy(self._parameters.data)
        if ref.space == "buffer":
            return self._buffer(self._phases[ref.phase], ref.index, tokens)
        tensor = self._tables["state"][ref.index]
        if self._plan.states[ref.index].kind == "full_cache":
            assert isinstance(tokens, int), "a function has no caches"
            return tensor[:, start : start + tokens]
        return tensor


def _shared(tensor: torch.Tensor) -> NDArray[Any]:
    """An array that shares the tensor's memory; of bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _attributes(launch: Launch) -> dict[str, Any]:
    return dict(launch.attributes)


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().copy()
