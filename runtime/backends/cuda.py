"""How does an NVIDIA GPU serve a plan?

Through the driver alone: kernels come built in the plan, graphs are built node by node from its launches and edges. One
stream serves requests; graphs are uploaded on another, so that building one holds nothing up. Neither torch nor triton
is needed, nor a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ledger import GRAPH_BYTES_PER_LAUNCH
from hjgc.plan_format.structs import Operand, State
from hjgc.runtime.backend import BackendRefused, LogitsProcessor, MemoryRef
from hjgc.runtime.backends.cuda_code import Code
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, DriverError, Handle
from hjgc.runtime.backends.cuda_launch import Chain, GraphBuilder, Kernels
from hjgc.runtime.backends.cuda_memory import DeviceMemory
from hjgc.runtime.backends.cuda_weights import load_weights


@dataclass(frozen=True, eq=False)
class CudaGraph:
    """An executable graph. `bytes` is an estimate: the driver takes memory for graphs in larger pieces."""

    executable: Handle
    bucket: int
    bytes: int


class CudaBackend:
    """A plan on one GPU. Kernels read the number of rows that count from the parameter block's `length`: whoever runs
    or replays for `tokens` rows has written it before."""

    def __init__(self, file: PlanFile, weights: Path, *, driver: Driver | None = None) -> None:
        """Loads the code and the weights. Raises PlanError (not for this device, damaged), RunError (no device)."""
        self._driver = driver or Driver()
        self._plan = file.plan
        self._undo: list[Callable[[], None]] = [self._driver.close]
        self._chains: dict[tuple[str, tuple[int, ...]], Chain] = {}
        try:
            self._open(file, weights)
        except BaseException:
            self.close()
            raise

    def _open(self, file: PlanFile, weights: Path) -> None:
        self._stream, self._upload_stream = self._make_stream(), self._make_stream()
        code = Code(self._driver, file)
        self._undo.append(code.close)
        self._memory = DeviceMemory(self._driver, self._plan, self._stream)
        self._undo.append(self._memory.close)
        self._kernels = Kernels(self._plan, self._driver.target, code.functions, self._memory)
        self._builders = {phase.name: GraphBuilder(self._driver, self._kernels, phase) for phase in self._plan.phases}
        constants = np.frombuffer(file.section("constants"), np.uint8)
        for i, constant in enumerate(self._plan.constants):
            data = constants[constant.offset : constant.offset + constant.length]
            self._memory.write(self._memory.address("constant", i), data)
        load_weights(self._plan, file.path, weights, self._memory)
        self._driver.wait(self._stream)

    def _make_stream(self) -> Handle:
        stream = self._driver.make_stream()
        self._undo.append(lambda: self._drop_stream(stream))
        return stream

    def _drop_stream(self, stream: Handle) -> None:
        self._driver.wait(stream)
        self._driver.drop_stream(stream)

    @property
    def name(self) -> str:
        return self._driver.target

    def write_parameters(self, values: Mapping[str, int | float]) -> None:
        self._driver.make_current()
        self._memory.write_fields(values)

    def write_history(self, offset: int, ids: Sequence[int]) -> None:
        self._driver.make_current()
        index, _ = self._state("token_history")
        data = np.array(ids, np.int32).view(np.uint8)
        self._memory.write(self._memory.address("state", index) + 4 * offset, data)

    def run(self, phase: str, launches: Sequence[int], tokens: int, stop: Callable[[], bool] | None = None) -> bool:
        self._driver.make_current()
        return self._chain(phase, tuple(launches)).run(tokens, stop)

    def _chain(self, phase: str, launches: tuple[int, ...]) -> Chain:
        chain = self._chains.get((phase, launches))
        if chain is None:
            chain = Chain(self._driver, self._kernels, self._plan.phase(phase), launches, self._stream)
            self._chains[phase, launches] = chain
        return chain

    def call_host(self, phase: str, launch: int, process: LogitsProcessor) -> None:
        self._driver.make_current()
        by_role = {operand.role: operand for operand in self._plan.phase(phase).launches[launch].operands}
        fields = self._memory.read_fields()
        end = int(fields["start"]) + int(fields["length"])
        history, _ = self._place(by_role["history"])
        address, state = self._place(by_role["logits"])
        row = to_float32(self._memory.read(address, state.bytes), state.dtype)
        changed = process(self._memory.read(history, 4 * end).view(np.int32), row)
        self._memory.write(address, from_float32(row if changed is None else changed, state.dtype))

    def _place(self, operand: Operand) -> tuple[int, State]:
        return self._memory.address(operand.space, operand.index), self._plan.states[operand.index]

    def build(self, phase: str, launches: Sequence[int], bucket: int) -> CudaGraph:
        try:
            self._driver.make_current()
            graph = self._builders[phase].build(launches, bucket)
            try:
                executable = self._driver.instantiate(graph, self._upload_stream)
            finally:
                self._driver.drop_graph(graph)
        except DriverError as error:
            raise BackendRefused(str(error)) from None
        return CudaGraph(executable, bucket, self.graph_bytes(len(launches)))

    def graph_bytes(self, launches: int) -> int:
        return launches * GRAPH_BYTES_PER_LAUNCH

    def replay(self, graph: CudaGraph, tokens: int) -> None:
        if tokens > graph.bucket:
            raise RunError(f"expected at most {graph.bucket} rows for this graph, found {tokens}")
        self._driver.make_current()
        self._driver.replay(graph.executable, self._stream)

    def release(self, graph: CudaGraph) -> None:
        self._driver.make_current()
        self._driver.drop_executable(graph.executable)

    def snapshot(self, refs: Sequence[MemoryRef], start: int, tokens: int) -> dict[MemoryRef, Bytes]:
        self._driver.make_current()
        return {
            ref: np.concatenate([self._memory.read(*span) for span in self._memory.spans(ref, start, tokens)])
            for ref in refs
        }

    def restore(self, saved: Mapping[MemoryRef, Bytes], start: int, tokens: int) -> None:
        self._driver.make_current()
        for ref, data in saved.items():
            at = 0
            for address, size in self._memory.spans(ref, start, tokens):
                self._memory.write(address, data[at : at + size])
                at += size

    def read_token(self) -> int:
        self._driver.make_current()
        index, state = self._state("sampled")
        return int(self._memory.read(self._memory.address("state", index), state.bytes).view(np.int32)[0])

    def read_logits(self) -> NDArray[np.float32]:
        self._driver.make_current()
        index, state = self._state("logits")
        data = self._memory.read(self._memory.address("state", index), state.bytes)
        return to_float32(data, state.dtype)[-state.shape[-1] :]

    def _state(self, kind: str) -> tuple[int, State]:
        for index, state in enumerate(self._plan.states):
            if state.kind == kind:
                return index, state
        raise RunError(f"expected a plan with a state of kind {kind}, found none")

    def close(self) -> None:
        """Waits for this backend's own work, then gives everything back."""
        if self._undo:
            self._driver.make_current()
        while self._undo:
            self._undo.pop()()


def to_float32(data: Bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(dtype).astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> Bytes:
    """To the nearest value of the other type, ties to even."""
    if dtype != "bfloat16":
        return values.astype(dtype).view(np.uint8)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
