"""How does ONNX Runtime's CUDA provider run islands in the middle of our work?

On the stream that serves and on the plan's own memory, through IO binding: nothing is copied. A run waits for the
device at its end, where ONNX Runtime gives back what its kernels read of the host's memory; told not to wait, it would
keep that for as long as the session lives. An island goes to it only if ONNX Runtime computes every one of its nodes
there; copies that it would make for the others are none that we could count. What the run of such an island issues is
recorded once more, by a session of its own on a stream of its own, where it becomes nodes of a graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from hjgc.runtime.backend import BackendRefused
from hjgc.runtime.backends.cuda_driver import Driver, DriverError, Handle
from hjgc.runtime.backends.element_types import numpy_dtype
from hjgc.runtime.island_sessions import PROVIDER, Opened, Place, named, session_options
from hjgc.runtime.islands import Islands
from hjgc.runtime.onnx_bytes import attribute_numbers
from hjgc.runtime.ort_values import BFLOAT16

NAME = "CUDAExecutionProvider"
ORDINAL = 0
"""Of the device, among those that the process may see."""
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""ONNX Runtime waits for the device to learn how such a node goes on."""
CHOOSERS = frozenset({"TopK", "MoE", "QMoE"})
"""What they choose of a row of infinities or of no numbers need not be there."""
FLOATS = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(double)": 11, "tensor(bfloat16)": 16}
"""Types, with ONNX's numbers."""
ASSIGNMENT = "session.record_ep_graph_assignment_info"
NEEDED = ("get_provider_graph_assignment_info", "get_input_memory_infos")
UNSYNCHRONISED = "disable_synchronize_execution_providers"
_kept: list[Any] = []
"""Sessions that are never given back."""


class CudaProvider:
    """Sessions on one stream. Implements `hjgc.runtime.island_sessions.Provider`."""

    name = NAME

    def __init__(self, ort: Any, stream: Handle) -> None:
        self._ort = ort
        self._options = {
            "device_id": str(ORDINAL),
            "user_compute_stream": str(int(stream)),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # to try them all takes seconds, of the first call
        }

    def open(self, data: bytes, options: Any) -> Opened | str:
        if missing := [name for name in NEEDED if not hasattr(self._ort.InferenceSession, name)]:
            return f"onnxruntime {self._ort.__version__} does not say where it computes ({missing[0]})"
        options.add_session_config_entry(ASSIGNMENT, "1")
        options.intra_op_num_threads = 1  # the host has nothing to compute, and threads that wait for it would spin
        try:
            said = _preload(self._ort)
            providers = [(NAME, self._options), PROVIDER]
            session = self._ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
            return f"its CUDA provider does not take it: {_brief(error)}"
        if NAME not in session.get_providers():
            return f"its CUDA provider did not load{said and ': '}{said}"
        return _opened(session, data)

    def bind(self, binding: Any, end: str, name: str, place: Place) -> None:
        kind = BFLOAT16 if place.dtype == "bfloat16" else np.dtype(numpy_dtype(place.dtype)).type
        bind = binding.bind_input if end == "input" else binding.bind_output
        bind(name, "cuda", ORDINAL, kind, list(place.shape), place.address)


def _opened(session: Any, data: bytes) -> Opened | str:
    """Where the session computes and wants its operands; why it had better not, if not all of it is on the device."""
    parts = session.get_provider_graph_assignment_info()
    nodes = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
    elsewhere = sorted({kind for provider, kind in nodes if provider != NAME})
    if elsewhere:
        return f"ONNX Runtime has no CUDA kernel, or prefers the CPU, for {', '.join(elsewhere)}"
    inputs = _on_device(session.get_input_memory_infos())
    outputs = _on_device(session.get_output_memory_infos())
    kinds = {kind for _, kind in nodes}
    graphless = "" if all(inputs + outputs) else "it takes or gives numbers of the host's"
    if flow := sorted(kinds & CONTROL_FLOW):
        graphless = f"{flow[0]} waits for the device"
    return Opened(session, inputs, outputs, graphless, _padless(session, data, kinds))


def _padless(session: Any, data: bytes, kinds: set[str]) -> str:
    """Rows that do not count hold whatever was there. As floating-point numbers they harm nobody; as whole ones, or
    made into such, they may be places to read from that are none."""
    if choosing := sorted(kinds & CHOOSERS):
        return f"{choosing[0]} may choose anything of rows that do not count"
    if others := sorted({value.type for value in session.get_inputs()} - FLOATS.keys()):
        return f"it reads {others[0]}, and rows that do not count may hold anything"
    # CastLike by its name: ONNX Runtime has made a Cast of it by now, whose attribute is not in these bytes.
    if b"CastLike" in data or any(kind not in FLOATS.values() for kind in attribute_numbers(data, "to")):
        return "it makes whole numbers of what it reads, and rows that do not count may hold anything"
    return ""


def _on_device(infos: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(info.name == "Cuda" for info in infos)


class Recorder:
    """Makes graphs of islands' runs, for one thread at a time. `close` it when its graphs are gone: they compute in the
    memory of its sessions."""

    def __init__(self, driver: Driver, islands: Islands) -> None:
        self._driver, self._islands = driver, islands
        self._stream = driver.make_stream()
        self._provider = CudaProvider(islands.ort, self._stream)
        self._sessions: dict[str, Any] = {}

    def record(self, number: int, inputs: Sequence[Place], outputs: Sequence[Place]) -> Handle:
        """A graph that computes the island on these operands; the caller drops it. Nothing runs meanwhile, so graphs
        that share its sessions' memory may. Raises BackendRefused."""
        session = self._session(number)
        binding = self._islands.bound(number, session, inputs, outputs)
        options = self._islands.ort.RunOptions()
        options.log_severity_level = 4
        options.add_run_config_entry(UNSYNCHRONISED, "1")  # it would wait, which no stream that is recorded may
        try:
            graph = self._recorded(number, lambda: session.run_with_iobinding(binding, options))
            self._check(graph, number)
        except BaseException:
            _keep_for_good(session)
            raise
        return graph

    def _check(self, graph: Handle, number: int) -> None:
        """Drops a graph that needs the host when it runs. Raises BackendRefused."""
        try:
            if kinds := self._driver.host_nodes(graph):
                raise BackendRefused(f"the run of {self._named(number)} has what no graph may hold: {', '.join(kinds)}")
        except BaseException:
            self._driver.drop_graph(graph)
            raise

    def _recorded(self, number: int, run: Any) -> Handle:
        self._driver.begin_capture(self._stream)
        try:
            run()
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
            with contextlib.suppress(DriverError):  # what was recorded is void by now
                self._driver.drop_graph(self._driver.end_capture(self._stream))
            problem = f"ONNX Runtime cannot be recorded at {self._named(number)}: {_brief(error)}"
            raise BackendRefused(problem) from error
        return self._driver.end_capture(self._stream)

    def _session(self, number: int) -> Any:
        key = self._islands.table[number].sha256
        if key not in self._sessions:
            opened = self._provider.open(self._islands.data(number), session_options(self._islands.ort))
            if isinstance(opened, str):
                raise BackendRefused(f"{self._named(number)}: {opened}")
            self._sessions[key] = opened.session
        return self._sessions[key]

    def _named(self, number: int) -> str:
        return named(self._islands.table[number])

    def close(self) -> None:
        self._sessions.clear()
        try:
            self._driver.wait(self._stream)
        finally:
            self._driver.drop_stream(self._stream)


def _keep_for_good(session: Any) -> None:
    """What such a run has borrowed of the host's memory ONNX Runtime gives back when the session goes: in a callback of
    the driver's, where nothing may be freed, and the process would end."""
    if all(session is not kept for kept in _kept):
        _kept.append(session)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))  # even when the interpreter ends


def provider_for(ort: Any, stream: Handle) -> CudaProvider | str:
    """The provider, or why this ONNX Runtime has none."""
    if NAME not in ort.get_available_providers():
        return "onnxruntime is installed without its CUDA provider; pip install onnxruntime-gpu in its place"
    return CudaProvider(ort, stream)


@cache
def _preload(ort: Any) -> str:
    """Load NVIDIA's libraries that pip has installed, which ONNX Runtime does not look for by itself. What it says."""
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(said):
            ort.preload_dlls()
    return " ".join(said.getvalue().split())[:400]


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
