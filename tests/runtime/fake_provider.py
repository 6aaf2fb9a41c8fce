"""ONNX Runtime's CUDA provider for tests: what it would compute on a device's memory, its CPU provider computes on
that of a driver that is not there. A run on a stream that is being recorded is only written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from hjgc.runtime.backends.cuda_driver import DriverError
from hjgc.runtime.backends.cuda_provider import NAME
from tests.runtime.gpu_function import AddingDriver

CPU = "CPUExecutionProvider"


class Stream(str):
    """Named, and a number where a handle is one."""

    def __int__(self) -> int:
        return int(re.sub(r"\D", "", self))


class ProviderDriver(AddingDriver):
    """Graphs hold launches and recorded runs. `kinds`: what `host_nodes` finds in every recorded graph."""

    def __init__(self) -> None:
        super().__init__()
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.kinds: list[str] = []

    def make_stream(self) -> Stream:
        return Stream(super().make_stream())

    def begin_capture(self, stream: Stream) -> None:
        self._do("begin_capture")
        self.recording[int(stream)] = []

    def end_capture(self, stream: Stream) -> list[Any]:
        runs = self.recording.pop(int(stream))
        if "end_capture" in self.refuses:
            raise DriverError("end_capture", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "the capture is void")
        return [("run", run) for run in runs]

    def host_nodes(self, graph: list[Any]) -> list[str]:
        return self.kinds

    def add_child(self, graph: list[Any], child: list[Any], before: Sequence[int]) -> int:
        self._do(f"add_child after {' '.join(map(str, before)) or 'nothing'}")
        graph.append(("child", list(child)))
        return len(graph) - 1

    def replay(self, executable: tuple[Any, ...], stream: str) -> None:
        self._do(f"replay {' '.join(str(what) for what, _ in executable)}")
        self._replay(executable)

    def _replay(self, nodes: Sequence[Any]) -> None:
        for number, (what, of) in enumerate(nodes, 1):
            if what == "child":
                self._replay(of)
            elif what == "run":
                of()
            else:
                self._add(of, 2 if self.wrong_replays and number == 2 else 1)

    def catch_up(self) -> None:
        self._catch_up()

    def view(self, address: int, kind: Any, shape: Sequence[int]) -> np.ndarray[Any, Any]:
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        return self._at(address, size).view(kind).reshape(shape)


@dataclass
class FakeOrt:
    """The module. `elsewhere`: kinds of nodes that it leaves to the CPU; `wanted_by_host`: inputs, by number, that it
    wants in the host's memory; `refuses`: what it says instead of a session; `fails`: what a run on the device says."""

    driver: ProviderDriver
    elsewhere: set[str] = field(default_factory=set[str])
    wanted_by_host: set[int] = field(default_factory=set[int])
    refuses: str = ""
    fails: str = ""
    falls_back: bool = False
    sessions: list[FakeSession] = field(default_factory=list["FakeSession"])

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def __hash__(self) -> int:
        return id(self)

    def get_available_providers(self) -> list[str]:
        return [NAME, CPU]

    def preload_dlls(self) -> None:
        print("loading what is there")

    @property
    def InferenceSession(self) -> Any:
        """Sessions, of the CPU's provider alone where that alone is asked for."""

        def make(data: bytes, options: Any, *, providers: Sequence[Any], **more: Any) -> Any:
            if providers == [CPU]:
                return onnxruntime.InferenceSession(data, options, providers=[CPU])
            if self.refuses:
                raise RuntimeError(self.refuses)
            self.sessions.append(FakeSession(self, data, options, providers))
            return self.sessions[-1]

        make.get_provider_graph_assignment_info = make.get_input_memory_infos = None  # type: ignore[attr-defined] (it stands for a class, which has them)
        return make


class FakeSession:
    def __init__(self, ort: FakeOrt, data: bytes, options: Any, providers: Sequence[Any]) -> None:
        ((name, given), self.rest) = providers
        assert (name, self.rest) == (NAME, CPU)
        self.ort, self.stream = ort, int(given["user_compute_stream"])
        self._session = onnxruntime.InferenceSession(data, options, providers=[CPU])
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [CPU] if self.ort.falls_back else [NAME, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        parts = self._session.get_provider_graph_assignment_info()
        return [self._part(node) for part in parts for node in part.get_nodes()]

    def _part(self, node: Any) -> Any:
        provider = CPU if node.op_type in self.ort.elsewhere else NAME
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [node])

    def get_input_memory_infos(self) -> list[Any]:
        names = range(len(self._session.get_inputs()))
        return [SimpleNamespace(name="Cpu" if i in self.ort.wanted_by_host else "Cuda") for i in names]

    def get_output_memory_infos(self) -> list[Any]:
        return [SimpleNamespace(name="Cuda") for _ in self._session.get_outputs()]

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._session.io_binding(), self.ort.driver)

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        if self.ort.fails:
            raise RuntimeError(self.ort.fails)

        def run() -> None:
            self.runs += 1
            self.ort.driver.catch_up()
            self._session.run_with_iobinding(binding.real)

        recorded = self.ort.driver.recording.get(self.stream)
        assert (recorded is not None) == _is_asynchronous(options), "a run waits at its end, unless it is recorded"
        if recorded is not None:
            recorded.append(run)
        else:
            assert self.stream == self.ort.sessions[0].stream, "a session that only records ran"
            run()


def _is_asynchronous(options: Any) -> bool:
    try:
        return options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
    except RuntimeError:  # nothing was said
        return False


class FakeBinding:
    def __init__(self, real: Any, driver: ProviderDriver) -> None:
        self.real, self._driver = real, driver

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.real.bind_ortvalue_input(name, value)

    def bind_input(self, name: str, device: str, ordinal: int, kind: Any, shape: list[int], address: int) -> None:
        self.real.bind_ortvalue_input(name, self._value(device, ordinal, kind, shape, address))

    def bind_output(self, name: str, device: str, ordinal: int, kind: Any, shape: list[int], address: int) -> None:
        self.real.bind_ortvalue_output(name, self._value(device, ordinal, kind, shape, address))

    def _value(self, device: str, ordinal: int, kind: Any, shape: list[int], address: int) -> Any:
        assert (device, ordinal) == ("cuda", 0)
        return onnxruntime.OrtValue.ortvalue_from_numpy(self._driver.view(address, kind, shape))
