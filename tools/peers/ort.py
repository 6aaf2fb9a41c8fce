"""How fast is ONNX Runtime on the ONNX file that the plan was compiled from?

Written as its users write it when they care: every tensor is bound. present.* of one step is handed over as past of the
next as it is, and the logits land in memory allocated before, so that nothing is copied between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import InputError
from hjgc.tools.functions.ort import open_model
from hjgc.tools.peers.peer import Answer, Counts, Startup, timed_answer

PAST, PRESENT = "past_key_values.", "present."
NUMPY: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OrtPeer:
    """ONNX Runtime's CPU provider, all graph optimisations on. Implements `peer.Peer`."""

    def __init__(self, *, model: str, threads: int) -> None:
        self.startup = Startup()
        with self.startup.part("import"):
            import onnxruntime
        self._ort = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with self.startup.part("weights"):  # the graph is read, optimised, and given its weights in one call
            self._session = open_model(onnxruntime, Path(model), options)
        self.versions = {"onnxruntime": str(onnxruntime.__version__)}
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._outputs = {entry.name: entry for entry in self._session.get_outputs()}
        self._order = [entry.name for entry in self._session.get_outputs()]
        self._caches = [name for name in self._inputs if name.startswith(PAST)]
        self._check(model)
        self._logits: dict[int, NDArray[Any]] = {}

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        self._length = 0
        self._past = {name: self._empty(name) for name in self._caches}
        for rows in {len(ids), 1}:
            self._logits_for(rows)
        return timed_answer(lambda: self._step(ids), lambda token: self._step([token]), tokens)

    def _step(self, ids: Sequence[int]) -> int:
        binding = self._session.io_binding()
        for name, values in self._numbers(ids).items():
            binding.bind_cpu_input(name, values)
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        logits = self._logits_for(len(ids))
        binding.bind_output("logits", "cpu", 0, logits.dtype.type, logits.shape, logits.ctypes.data)
        presents = [PRESENT + name.removeprefix(PAST) for name in self._caches]
        for name in presents:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()  # in the order they were bound: the logits first
        self._past = dict(zip(self._caches, outputs[1:], strict=True))
        self._length += len(ids)
        return int(logits[0, -1].argmax())

    def _numbers(self, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
        end = self._length + len(ids)
        given = {"input_ids": ids, "position_ids": range(self._length, end), "attention_mask": [1] * end}
        return {
            name: np.array([numbers], NUMPY[self._inputs[name].type])
            for name, numbers in given.items()
            if name in self._inputs
        }

    def _logits_for(self, rows: int) -> NDArray[Any]:
        """Memory for the logits of so many rows: the ONNX model gives one for each row of the prompt."""
        if rows not in self._logits:
            entry = self._outputs["logits"]
            self._logits[rows] = np.zeros((1, rows, entry.shape[2]), NUMPY[entry.type])
        return self._logits[rows]

    def _empty(self, name: str) -> Any:
        entry = self._inputs[name]
        shape = (1, entry.shape[1], 0, entry.shape[3])
        return self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, NUMPY[entry.type]))

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
        return {"providers": list(self._session.get_providers())}

    def close(self) -> None:
        self._past = {}
        del self._session
