"""How does an NVIDIA GPU serve a plan?

Through the driver alone: kernels come built in the plan, graphs are built node by node from its launches and edges. One
stream serves requests; graphs are uploaded on another, so that building one holds nothing up. Neither torch nor triton
is needed, nor a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.building import BuiltVariant
from hjgc.plan_format.codec import PlanFile
from hjgc.plan_format.errors import RunError
from hjgc.plan_format.ledger import GRAPH_BYTES_PER_LAUNCH
from hjgc.plan_format.structs import Operand, Phase, Plan, State
from hjgc.runtime.backend import BackendRefused, Callback, Ids, MemoryRef, Rows, Value, digest_of, spell_rows
from hjgc.runtime.backends.cuda_code import Code
from hjgc.runtime.backends.cuda_digest import Digests
from hjgc.runtime.backends.cuda_driver import Bytes, Driver, DriverError, Handle
from hjgc.runtime.backends.cuda_islands import DeviceIslands, island_groups
from hjgc.runtime.backends.cuda_launch import Chain, GraphBuilder, Kernels
from hjgc.runtime.backends.cuda_memory import DeviceMemory
from hjgc.runtime.backends.cuda_parameters import Parameters, room_needed
from hjgc.runtime.backends.cuda_ports import Ports
from hjgc.runtime.backends.cuda_rows import ReadyRows
from hjgc.runtime.backends.cuda_staging import Tokens, Uploads
from hjgc.runtime.backends.cuda_timing import Timing
from hjgc.runtime.backends.cuda_weights import STAGING_BYTES, load_weights
from hjgc.runtime.backends.element_types import from_float32, to_float32
from hjgc.runtime.islands import Values


@dataclass(frozen=True, eq=False)
class CudaGraph:
    """An executable graph. `bytes` is an estimate: the driver takes memory for graphs in larger pieces."""

    executable: Handle
    bucket: Rows
    bytes: int


class CudaBackend:
    """A plan on one GPU. Kernels read the number of rows that count from the parameter block's `length`: whoever runs
    or replays for `tokens` rows has written it before; those of a function get their sizes as arguments. Implements
    `hjgc.runtime.backend.CodeBackend`, and `FunctionBackend` for a plan that is a function."""

    asynchronous = True
    thread_pools = False
    digests_on = "device"

    def __init__(
        self,
        file: PlanFile,
        weights: Path,
        *,
        driver: Driver | None = None,
        plan: Plan | None = None,
        target: str | None = None,
        built: Mapping[int, BuiltVariant] | None = None,
    ) -> None:
        """Loads the code of `target`, by default the device's own, and the weights. `plan` is the file's, or one made
        from it that has further targets and variants; `built` are variants that were built since. Raises PlanError (not
        for this device, damaged), RunError (no device)."""
        self._driver = driver or Driver()
        self._target = target or self._driver.target
        self._plan = plan or file.plan
        self._built = built or {}
        self._undo: list[Callable[[], None]] = [self._driver.close]
        self._graph_bytes = 0
        try:
            self._open(file, weights)
        except BaseException:
            self.close()
            raise

    def _open(self, file: PlanFile, weights: Path) -> None:
        self._free_at_open, _ = self._driver.free_bytes()
        self._stream, self._upload_stream = self._make_stream(), self._make_stream()
        self._code = Code(self._driver, file, self._plan, self._target, self._built)
        self._undo.append(self._code.close)
        self._memory = DeviceMemory(self._driver, self._plan, self._stream)
        self._undo.append(self._memory.close)
        self._open_digests()
        self._open_staging()
        self._use(self._bound(self._target))
        constants = np.frombuffer(file.section("constants"), np.uint8)
        for i, constant in enumerate(self._plan.constants):
            data = constants[constant.offset : constant.offset + constant.length]
            self._memory.write(self._memory.address("constant", i), data)
        load_weights(self._driver, self._plan, file.path, weights, self._memory)
        self._island_groups: dict[tuple[str, tuple[int, ...]], tuple[tuple[bool, tuple[int, ...]], ...]] = {}
        self._islands: DeviceIslands | None = None
        if self._plan.islands:
            self._islands = DeviceIslands(self._driver, file, weights, self._memory, self._stream, self._values)
            self._undo.append(self._islands.close)
            self._undo.append(lambda: self._driver.wait(self._stream))
        self._driver.wait(self._stream)

    def _bound(self, target: str) -> Kernels:
        kernels = Kernels(self._driver, self._plan, target, self._code.loaded, self._memory)
        kernels.bind_all()
        return kernels

    def _use(self, kernels: Kernels) -> None:
        self._kernels, self._target = kernels, kernels.target
        self._chains: dict[tuple[str, tuple[int, ...]], Chain] = {}
        self._builders = {phase.name: GraphBuilder(kernels, phase, self._record) for phase in self._plan.phases}
        self._rows = ReadyRows(self._plan.phases, kernels.target, lambda index: kernels.loaded[index] is not None)

    def _open_staging(self) -> None:
        """Page-locked slots for what goes up with each prompt and down with each token."""
        self._states = {state.kind: (i, state) for i, state in reversed(list(enumerate(self._plan.states)))}
        self._uploads = Uploads(self._driver, self._stream, room_needed(self._plan, self._memory))
        self._undo.append(self._uploads.close)
        self._parameters = Parameters(self._plan, self._memory, self._uploads)
        self._values = Values()
        self._ports: Ports | None = None
        if self._plan.is_function:
            self._ports = Ports(self._driver, self._plan, self._memory, self._stream, self._values)
            self._undo.append(self._ports.close)
        self._tokens: Tokens | None = None
        if "sampled" in self._states:
            index, _ = self._states["sampled"]
            self._tokens = Tokens(self._driver, self._stream, self._memory.address("state", index))
            self._undo.append(self._tokens.close)
        self._undo.append(lambda: self._driver.wait(self._stream))

    def _open_digests(self) -> None:
        """Without them checks bring everything to the host, which is told and not refused."""
        self._digests: Digests | None = None
        try:
            self._digests = Digests(self._driver, self._stream)
            self._undo.append(self._digests.close)
        except DriverError as error:
            self.digests_on = f"host: {error}"

    def _make_stream(self) -> Handle:
        stream = self._driver.make_stream()
        self._undo.append(lambda: self._drop_stream(stream))
        return stream

    def _drop_stream(self, stream: Handle) -> None:
        self._driver.wait(stream)
        self._driver.drop_stream(stream)

    @property
    def name(self) -> str:
        return self._target

    def write_parameters(self, values: Mapping[str, int | float], prompt: Ids | None = None) -> None:
        self._driver.make_current()
        self._parameters.write(values, prompt)

    def write_history(self, offset: int, ids: Ids) -> None:
        self._driver.make_current()
        self._parameters.write_history(offset, ids)

    def write_arguments(self, phase: str, rows: Rows, values: Sequence[Value]) -> None:
        assert self._ports is not None, "a plan that is a function"
        self._driver.make_current()
        self._ports.write(phase, rows, values)

    def read_results(self, phase: str, rows: Rows) -> list[Value]:
        assert self._ports is not None, "a plan that is a function"
        self._driver.make_current()
        return self._ports.read(phase, rows)

    def end_call(self) -> None:
        self._values.clear()

    def run(
        self,
        phase: str,
        launches: Sequence[int],
        tokens: Rows,
        stop: Callable[[], bool] | None = None,
        ahead: int | None = None,
    ) -> bool:
        self._driver.make_current()
        if self._islands is None:
            return self._chain(phase, tuple(launches)).run(tokens, stop, ahead)
        return all(
            self._run_group(phase, *group, tokens, stop, ahead) for group in self._groups(phase, tuple(launches))
        )

    def _run_group(
        self,
        phase: str,
        foreign: bool,
        launches: tuple[int, ...],
        tokens: Rows,
        stop: Callable[[], bool] | None,
        ahead: int | None,
    ) -> bool:
        """Launches of one kind: whether all ran."""
        if not foreign:
            return self._chain(phase, launches).run(tokens, stop, ahead)
        assert self._islands is not None, "a plan with islands"
        for number in launches:
            if ahead is not None:  # an island may take as long as many launches
                self._driver.wait(self._stream)
            if (stop is not None and stop()) or not self._islands.run(self._plan.phase(phase), number, tokens, stop):
                return False
        return True

    def _groups(self, phase: str, launches: tuple[int, ...]) -> tuple[tuple[bool, tuple[int, ...]], ...]:
        key = (phase, launches)
        if key not in self._island_groups:
            self._island_groups[key] = island_groups(self._plan.phase(phase), launches)
        return self._island_groups[key]

    def _record(self, phase: Phase, number: int, tokens: Rows) -> Handle:
        assert self._islands is not None, "a plan with islands"
        return self._islands.record(phase, number, tokens)

    def graphless(self, phase: str, launch: int, *, padded: bool) -> str:
        assert self._islands is not None, "a plan with islands"
        return self._islands.graphless(self._plan.phase(phase).launches[launch], padded=padded)

    def islands(self) -> dict[str, Any] | None:
        return None if self._islands is None else self._islands.report()

    def uncounted(self) -> AbstractContextManager[None]:
        return nullcontext() if self._islands is None else self._islands.uncounted()

    def _chain(self, phase: str, launches: tuple[int, ...]) -> Chain:
        chain = self._chains.get((phase, launches))
        if chain is None:
            chain = Chain(self._kernels, self._plan.phase(phase), launches, self._stream)
            self._chains[phase, launches] = chain
        return chain

    def call_host(self, phase: str, launch: int, tokens: int, function: Callback) -> None:
        self._driver.make_current()
        by_role = {operand.role: operand for operand in self._plan.phase(phase).launches[launch].operands}
        if "logits" in by_role:
            self._process_logits(by_role, function)
        else:
            x, y = (self._ref(phase, by_role[role]) for role in ("x", "y"))
            self._process_rows(x, y, tokens, function)

    def _process_rows(self, x: MemoryRef, y: MemoryRef, tokens: int, function: Callback) -> None:
        """The rows that count, and no others."""
        dtype = self._memory.dtype(x.space, x.index, x.phase)
        (source,), (target,) = self._memory.spans(x, 0, tokens), self._memory.spans(y, 0, tokens)
        rows = to_float32(self._memory.read(*source), dtype).reshape(tokens, -1)
        changed = function(rows)
        self._memory.write(target[0], from_float32(rows if changed is None else changed, dtype))

    def _ref(self, phase: str, operand: Operand) -> MemoryRef:
        return MemoryRef(operand.space, operand.index, phase if operand.space == "buffer" else "")

    def _process_logits(self, by_role: Mapping[str, Operand], process: Callback) -> None:
        fields = self._memory.read_fields()
        end = int(fields["start"]) + int(fields["length"])
        history, _ = self._place(by_role["history"])
        address, state = self._place(by_role["logits"])
        row = to_float32(self._memory.read(address, state.bytes), state.dtype)
        changed = process(self._memory.read(history, 4 * end).view(np.int32), row)
        self._memory.write(address, from_float32(row if changed is None else changed, state.dtype))

    def _place(self, operand: Operand) -> tuple[int, State]:
        return self._memory.address(operand.space, operand.index), self._plan.states[operand.index]

    def most_rows(self, phase: str, rows: int) -> int:
        return self._rows.most(phase, rows)

    def missing(self, phase: str, rows: Rows) -> tuple[int, ...]:
        return self._rows.missing(phase, rows)

    def load(self, index: int, built: BuiltVariant) -> None:
        self._driver.make_current()
        self._code.load(index, built)
        self._rows.refresh()

    def prepare(self, target: str) -> Callable[[], None]:
        self._driver.make_current()
        kernels = self._bound(target)

        def switch() -> None:
            self._driver.make_current()
            self._driver.wait(self._stream)  # a step that was launched ahead for nobody may still run
            self._use(kernels)
            self._code.unload(tuple(name for name in self._plan.targets if name != target))

        return switch

    def build(
        self, phase: str, launches: Sequence[int], bucket: Rows, pause: Callable[[], None] | None = None
    ) -> CudaGraph:
        self._driver.make_current()
        if self._rows.missing(phase, bucket):
            raise BackendRefused(f"the kernels for {spell_rows(bucket)} rows are not built")
        graph = self._builders[phase].build(launches, bucket, pause)
        try:
            executable = self._driver.instantiate(graph, self._upload_stream)
        finally:
            self._driver.drop_graph(graph)
        built = CudaGraph(executable, bucket, self.graph_bytes(len(launches)))
        self._graph_bytes += built.bytes
        return built

    def mark(self) -> Handle:
        """A point in the stream of the requests, for `milliseconds`, until it is dropped."""
        self._driver.make_current()
        timer = self._driver.make_timer()
        self._driver.record(timer, self._stream)
        return timer

    def drop_marks(self, marks: Sequence[Handle]) -> None:
        for mark in marks:
            self._driver.drop_event(mark)

    def milliseconds(self, first: Handle, second: Handle) -> float:
        """From one mark to another, once the device has passed both."""
        self._driver.make_current()
        self._driver.wait_event(second)
        return self._driver.milliseconds(first, second)

    def timing(self) -> Timing:
        """Times graphs on this backend's memory while nobody is served."""
        return Timing(self._driver, self._memory, self._code.loaded, self._target, self._stream)

    def graph_bytes(self, launches: int) -> int:
        return launches * GRAPH_BYTES_PER_LAUNCH

    def replay(self, graph: CudaGraph, tokens: Rows) -> None:
        _check_rows(graph.bucket, tokens)
        self._driver.make_current()
        self._driver.replay(graph.executable, self._stream)

    def release(self, graph: CudaGraph) -> None:
        self._driver.make_current()
        self._driver.drop_executable(graph.executable)
        self._graph_bytes -= graph.bytes

    def snapshot(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, Bytes]:
        self._driver.make_current()
        return {ref: self._read(*self._memory.place(ref, start, tokens)) for ref in refs}

    def _read(self, address: int, pitch: int, width: int, rows: int) -> Bytes:
        if rows == 1:
            return self._memory.read(address, width) if width else np.empty(0, np.uint8)
        return self._driver.read_rows(address, pitch, width, rows, self._stream)

    def digest(self, refs: Sequence[MemoryRef], start: int, tokens: Rows) -> dict[MemoryRef, int]:
        if self._digests is None:
            return {ref: digest_of(data) for ref, data in self.snapshot(refs, start, tokens).items()}
        self._driver.make_current()
        places = [self._memory.place(ref, start, tokens) for ref in refs]
        return dict(zip(refs, self._digests.of(places), strict=True))

    def restore(self, saved: Mapping[MemoryRef, Bytes], start: int, tokens: Rows) -> None:
        self._driver.make_current()
        for ref, data in saved.items():
            at = 0
            for address, size in self._memory.spans(ref, start, tokens):
                if size:
                    self._memory.write(address, data[at : at + size])
                at += size

    def fill(self, refs: Sequence[MemoryRef], start: int, tokens: Rows, value: int) -> None:
        self._driver.make_current()
        places = [self._memory.place(ref, start, tokens) for ref in refs]
        for address, pitch, width, rows in places:
            if width:
                self._driver.fill_rows(address, pitch, width, rows, value, self._stream)

    def send_token(self) -> int:
        self._driver.make_current()
        ticket = self._sampled().send()
        self._uploads.settle()
        return ticket

    def read_token(self, ticket: int) -> int:
        self._driver.make_current()
        return self._sampled().read(ticket)

    def _sampled(self) -> Tokens:
        if self._tokens is None:
            raise RunError("expected a plan with a state of kind sampled, found none")
        return self._tokens

    def read_logits(self) -> NDArray[np.float32]:
        self._driver.make_current()
        index, state = self._state("logits")
        data = self._memory.read(self._memory.address("state", index), state.bytes)
        return to_float32(data, state.dtype)[-state.shape[-1] :]

    def _state(self, kind: str) -> tuple[int, State]:
        if kind not in self._states:
            raise RunError(f"expected a plan with a state of kind {kind}, found none")
        return self._states[kind]

    def memory(self) -> dict[str, int]:
        """`staging_to_load` was held while weights were loaded; `free` and `total` count all processes on the device,
        and are left out by a device that answers nothing any more."""
        if not self._undo:
            return {}
        plan, held = self._plan, [part.bytes for part in (self._tokens, self._ports, self._islands) if part is not None]
        on_device = [weight for weight in plan.weights if weight.placement == "device"]
        lasting = sum(part.bytes for part in (*on_device, *plan.states)) + plan.parameters.bytes
        return {
            "lasting": lasting + sum(constant.length for constant in plan.constants) + self._island_weights(),
            "arena": plan.arena_bytes,
            "graphs": self._graph_bytes,
            "staging": self._uploads.bytes + sum(held),
            "staging_to_load": STAGING_BYTES,
            "free_at_open": self._free_at_open,
            **self._free(),
        }

    def _island_weights(self) -> int:
        return 0 if self._islands is None else self._islands.weight_bytes

    def _free(self) -> dict[str, int]:
        try:
            self._driver.make_current()
            free, total = self._driver.free_bytes()
        except BackendRefused:  # the report matters most after an error
            return {}
        return {"free": free, "total": total}

    def close(self) -> None:
        """Waits for this backend's own work, then gives everything back. What the driver refuses (after an error it may
        refuse all) keeps nothing else from being given back; it is raised at the end."""
        with ExitStack() as undo:
            for give_back in self._undo:
                undo.callback(give_back)
            if self._undo:
                undo.callback(self._driver.make_current)
            self._undo = []


def _check_rows(bucket: Rows, rows: Rows) -> None:
    """Raises RunError for rows that a graph of this bucket does not serve."""
    if isinstance(bucket, int) and isinstance(rows, int):
        if rows > bucket:
            raise RunError(f"expected at most {bucket} rows for this graph, found {rows}")
    elif rows != bucket:
        raise RunError(f"expected the sizes {spell_rows(bucket)} for this graph, found {spell_rows(rows)}")
