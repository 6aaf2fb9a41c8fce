"""Does ONNX Runtime as a peer answer alike from the host and from a device, and what passes between the two?

There is no GPU here. Of the device there is what the peer sees: a driver that hands out the host's memory, and an
onnxruntime whose CUDA provider is the CPU's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hjgc.plan_format.errors import InputError
from hjgc.tools.benching.text import remarks
from hjgc.tools.peers import ort
from hjgc.tools.peers.ort import OrtPeer, best, element_bytes
from hjgc.tools.peers.ort_logits import Bytes
from hjgc.tools.peers.ort_providers import CPU, CUDA, load_cuda

PROMPT, TOKENS = [5, 6, 7, 8, 9], 6
VOCABULARY = 199


class Gpu:
    """A driver over the host's memory. `fetched`: bytes of each copy to the host; `held`: what was not given back."""

    def __init__(self, ordinal: int = 0) -> None:
        self.fetched: list[int] = []
        self.held: dict[int, Bytes] = {}
        self.closed = False

    def allocate(self, size: int) -> int:
        memory = np.zeros(size, np.uint8)
        self.held[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        del self.held[address]

    def allocate_host(self, size: int) -> Bytes:
        return self.held[self.allocate(size)]

    def free_host(self, memory: Bytes) -> None:
        self.free(memory.ctypes.data)

    def fetch(self, memory: Bytes, address: int, stream: object) -> None:
        self.fetched.append(memory.nbytes)
        ctypes.memmove(memory.ctypes.data, address, memory.nbytes)

    def make_stream(self) -> int:
        return self.allocate(1)

    def wait(self, stream: int) -> None:
        assert stream in self.held

    def drop_stream(self, stream: int) -> None:
        self.free(stream)

    def close(self) -> None:
        self.closed = True


class Binding:
    """What is bound to the device is bound to the host, and noted down."""

    def __init__(self, session: Any, bound: list[tuple[str, str]]) -> None:
        self.real, self._bound = session.io_binding(), bound
        self.bind_cpu_input, self.bind_ortvalue_input = self.real.bind_cpu_input, self.real.bind_ortvalue_input
        self.get_outputs = self.real.get_outputs

    def bind_output(self, name: str, device: str, ordinal: int, *memory: Any) -> None:
        self._bound.append((name, device))
        self.real.bind_output(name, "cpu", 0, *memory)


class CudaSession:
    def __init__(self, real: Any, loaded: bool, bound: list[tuple[str, str]]) -> None:
        self._real, self._bound = real, bound
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs
        self._providers = [CUDA, CPU] if loaded else [CPU]

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> Binding:
        return Binding(self._real, self._bound)

    def run_with_iobinding(self, binding: Binding) -> None:
        self._real.run_with_iobinding(binding.real)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda n=n: [None] * n) for name, n in ((CPU, 2), (CUDA, 30))
        ] * 2


class CudaRuntime(ModuleType):
    """onnxruntime as `onnxruntime-gpu` brings it. `loads`: whether its CUDA provider finds its libraries;
    `empties`: whether it makes values of no bytes on the device."""

    def __init__(self, *, loads: bool = True, empties: bool = True) -> None:
        super().__init__("onnxruntime")
        self.asked: list[Any] = []
        self.bound: list[tuple[str, str]] = []
        self.made: list[str] = []
        self.preloaded = 0
        self._loads, self._empties = loads, empties
        self.__version__ = onnxruntime.__version__
        self.SessionOptions = onnxruntime.SessionOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._value)

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcudnn.so.9")

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(self, model: str, options: Any, *, providers: list[Any], enable_fallback: int) -> CudaSession:
        assert not enable_fallback
        self.asked = providers
        return CudaSession(onnxruntime.InferenceSession(model, options, providers=[CPU]), self._loads, self.bound)

    def _value(self, shape: Sequence[int], kind: Any, device: str, ordinal: int) -> Any:
        if device == "cuda" and not self._empties:
            raise RuntimeError("no allocator for no bytes")
        self.made.append(device)
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(ort, "Driver", lambda ordinal: made)
    return made


@pytest.fixture
def expected(model: Path) -> tuple[int, ...]:
    peer = OrtPeer(model=str(model), threads=1)
    tokens = peer.answer(PROMPT, TOKENS).tokens
    peer.close()
    return tokens


def on_cuda(monkeypatch: pytest.MonkeyPatch, model: Path, **how: bool) -> tuple[OrtPeer, CudaRuntime]:
    runtime = CudaRuntime(**how)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return OrtPeer(model=str(model), threads=1, provider="cuda"), runtime


def test_all_stays_on_the_device_but_a_row_of_logits_a_step(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, model: Path, expected: tuple[int, ...]
):
    peer, runtime = on_cuda(monkeypatch, model)
    assert peer.answer(PROMPT, TOKENS).tokens == expected
    row = 4 * VOCABULARY
    assert gpu.fetched == [row] * TOKENS
    names = ["logits", "present.0.key", "present.0.value"]
    assert runtime.bound == [(name, "cuda") for name in names] * TOKENS and set(runtime.made) == {"cuda"}
    assert peer.answer(PROMPT[:2], 2).tokens and peer.answer(PROMPT * 4, TOKENS).tokens[0] in range(VOCABULARY)
    assert sorted(memory.nbytes for memory in gpu.held.values()) == [1, row, len(PROMPT) * 4 * row]
    peer.close()
    assert not gpu.held and gpu.closed


def test_the_cuda_provider_is_asked_first_and_says_what_it_runs(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, model: Path, capsys: pytest.CaptureFixture[str]
):
    peer, runtime = on_cuda(monkeypatch, model)
    assert runtime.asked == [(CUDA, {"device_id": 0}), CPU]
    assert set(peer.startup.seconds) == {"import", "device", "weights"}
    assert peer.details() == {"providers": [CUDA, CPU], "nodes": {CUDA: 60, CPU: 4}}
    written = capsys.readouterr()
    assert runtime.preloaded == 1 and written.out == "" and "libcudnn" in written.err


def test_a_first_past_of_the_hosts_does_as_well(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu, model: Path, expected: tuple[int, ...]
):
    peer, runtime = on_cuda(monkeypatch, model, empties=False)
    assert peer.answer(PROMPT, TOKENS).tokens == expected and set(runtime.made) == {"cpu"}


def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, model: Path):
    with pytest.raises(InputError, match=f"expected a session with {CUDA}, found {CPU}: .*; pip install 'onnxruntime-"):
        on_cuda(monkeypatch, model, loads=False)


def test_an_onnxruntime_for_the_cpu_and_none_at_all_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        InputError, match=f"expected {CUDA}, found .*{CPU}; pip uninstall onnxruntime, then pip install"
    ):
        load_cuda()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=f"expected a module with {CUDA}, found none .*; pip install 'hjgc"):
        load_cuda()


def test_on_the_cpu_nodes_are_counted_where_onnx_runtime_tells(model: Path):
    details = OrtPeer(model=str(model), threads=1).details()
    assert details["providers"] == [CPU]
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert set(details["nodes"]) == {CPU} and details["nodes"][CPU] > 20


def test_nodes_on_two_providers_are_worth_a_remark():
    details = {"ort": {"nodes": {CPU: 45}}, "ort-cuda": {"nodes": {CUDA: 60, CPU: 4}}, "eager": {}}
    systems = [{"name": name, "details": found, "graphs_settled": True} for name, found in details.items()]
    shown = {"systems": systems, "load_average": {"before": None}}
    assert list(remarks(shown)) == [f"ort-cuda: nodes: 60 {CUDA}, 4 {CPU}"]


@pytest.mark.parametrize("kind", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"])
def test_the_best_of_a_row_is_found_in_every_type(kind: str):
    values = np.array([-8, 1, 3, 2.5, -0.5, 3], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    row = {"tensor(float)": values, "tensor(float16)": values.astype(np.float16), "tensor(bfloat16)": halves}[kind]
    assert best(row.view(np.uint8), kind) == 2 and element_bytes(kind) * len(values) == row.nbytes
