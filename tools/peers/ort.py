"""How fast is ONNX Runtime on the ONNX file that the plan was compiled from?

Written as its users write it when they care: every tensor is bound. present.* of one step is handed over as past of the
next as it is, on the device where it was computed, and the logits land in memory allocated before, so that nothing is
copied between steps; on a GPU the host reads the last row of logits alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import InputError
from hjgc.runtime.backends.cuda_driver import Driver
from hjgc.runtime.backends.cuda_provider import ASSIGNMENT
from hjgc.runtime.ort_values import BFLOAT16
from hjgc.tools.functions.ort import open_model
from hjgc.tools.peers.ort_logits import Bytes, DeviceLogits, HostLogits, Logits
from hjgc.tools.peers.ort_providers import (
    DEVICE,
    PROVIDERS,
    check_on_cuda,
    load_cuda,
    provider_details,
)
from hjgc.tools.peers.peer import Answer, Counts, Startup, timed_answer

PAST, PRESENT = "past_key_values.", "present."
TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": BFLOAT16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OrtPeer:
    """ONNX Runtime, all graph optimisations on. `provider`: `cpu`, or `cuda` for its CUDA provider, which leaves nodes
    that it has no kernel for to the CPU's. Implements `peer.Peer`. Raises InputError where there is no CUDA provider:
    nothing is measured on the CPU instead."""

    def __init__(self, *, model: str, threads: int, provider: str = "cpu") -> None:
        self.startup = Startup()
        self._device = provider
        with self.startup.part("import"):
            self._ort: Any = load_cuda() if provider == "cuda" else importlib.import_module("onnxruntime")
        self.versions = {"onnxruntime": str(self._ort.__version__)}
        driver = None
        if provider == "cuda":
            with self.startup.part("device"):
                driver = Driver(DEVICE)
        with self.startup.part("weights"):  # the graph is read, optimised, and given its weights in one call
            self._session = open_model(self._ort, Path(model), self._options(threads), providers=PROVIDERS[provider])
        if driver is not None:
            check_on_cuda(self._session)
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._outputs = {entry.name: entry for entry in self._session.get_outputs()}
        self._caches = [name for name in self._inputs if name.startswith(PAST)]
        self._check(model)
        self._kind, self._vocabulary = self._outputs["logits"].type, self._outputs["logits"].shape[2]
        row = self._vocabulary * element_bytes(self._kind)
        self._logits: Logits = HostLogits(row) if driver is None else DeviceLogits(driver, row)

    def _options(self, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry(ASSIGNMENT, "1")
        return options

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        self._length = 0
        self._past = {name: self._empty(name) for name in self._caches}
        self._logits.room(len(ids))
        return timed_answer(lambda: self._step(ids), lambda token: self._step([token]), tokens)

    def _step(self, ids: Sequence[int]) -> int:
        binding, rows = self._session.io_binding(), len(ids)
        for name, values in self._numbers(ids).items():
            binding.bind_cpu_input(name, values)
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        shape, address = (1, rows, self._vocabulary), self._logits.room(rows)
        binding.bind_output("logits", self._device, DEVICE, TYPES[self._kind], shape, address)
        for name in self._caches:
            binding.bind_output(PRESENT + name.removeprefix(PAST), self._device, DEVICE)
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()  # in the order they were bound: the logits first
        self._past = dict(zip(self._caches, outputs[1:], strict=True))
        self._length += rows
        return best(self._logits.last(rows), self._kind)

    def _numbers(self, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
        end = self._length + len(ids)
        given = {"input_ids": ids, "position_ids": range(self._length, end), "attention_mask": [1] * end}
        return {
            name: np.array([numbers], TYPES[self._inputs[name].type])
            for name, numbers in given.items()
            if name in self._inputs
        }

    def _empty(self, name: str) -> Any:
        """A past of no tokens, on the device. Should ONNX Runtime make no values without bytes there, one of the
        host's does as well: there is nothing to copy."""
        entry = self._inputs[name]
        shape, kind = (1, entry.shape[1], 0, entry.shape[3]), TYPES[entry.type]
        try:
            return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._device, DEVICE)
        except Exception:  # ONNX Runtime's own classes share no base but this
            return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

    def _check(self, model: str) -> None:
        wanted = ["logits", *(PRESENT + name.removeprefix(PAST) for name in self._caches)]
        missing = [name for name in wanted if name not in self._outputs]
        if missing or not self._caches:
            field = missing[0] if missing else f"{PAST}0.key"
            raise InputError(model, "expected a decoder with past and present keys and values, found none", field=field)

    def counts(self) -> Counts:
        return Counts()

    def settle(self, timeout: float) -> bool:
        del timeout
        return True

    def details(self) -> dict[str, Any]:
        return provider_details(self._session)

    def close(self) -> None:
        """The values first: they lie in the session's memory."""
        self._past = {}
        del self._session
        self._logits.close()


def element_bytes(kind: str) -> int:
    element = TYPES[kind]
    return 2 if element == BFLOAT16 else np.dtype(element).itemsize


def best(row: Bytes, kind: str) -> int:
    """The place of the highest of a row of logits. numpy compares 16-bit numbers one by one, five times slower than it
    converts them."""
    if kind == "tensor(bfloat16)":  # the upper half of a float32
        return int((row.view(np.uint16).astype(np.uint32) << 16).view(np.float32).argmax())
    return int(row.view(TYPES[kind]).astype(np.float32, copy=False).argmax())
