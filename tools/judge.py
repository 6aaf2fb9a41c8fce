"""What does ONNX Runtime compute for a decoder in ONNX, step by step?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hjgc.plan_format.errors import InputError

if TYPE_CHECKING:
    import onnx

PAST, PRESENT = "past_key_values.", "present."
DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
QUIET = 3  # errors only


class Judge:
    """An ONNX decoder on ONNX Runtime's CPU provider, fed with its own present.* as past. `values` are ONNX values that
    it also shows after each step. `threads` 0 leaves the number to ONNX Runtime.

    Raises InputError for a model that is missing, that ONNX Runtime refuses, or that has other inputs than `input_ids`,
    `position_ids`, `attention_mask` and `past_key_values.*`."""

    def __init__(self, model: Path, *, values: Sequence[str] = (), threads: int = 0) -> None:
        self._model = model
        self._session = _open(model, values, threads)
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self._check_names()
        self.values: dict[str, NDArray[Any]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the prompt."""
        self.length = 0
        self._past = {name: self._empty(name) for name in self._inputs if name.startswith(PAST)}

    def step(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits [V] after these tokens, which follow those of the steps before."""
        feeds = self._feeds(ids)
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:  # ONNX Runtime's own classes share no base but this
            raise InputError(self._model, f"expected a model that runs, ONNX Runtime says: {_short(error)}") from None
        self.values = dict(zip(self._outputs, results, strict=True))
        self._past = {name: self.values[_present(name)] for name in self._past}
        self.length += len(ids)
        return np.asarray(self.values["logits"][0, -1], dtype=np.float32)

    def _feeds(self, ids: Sequence[int]) -> dict[str, Any]:
        end = self.length + len(ids)
        given = {
            "input_ids": [list(ids)],
            "position_ids": [list(range(self.length, end))],
            "attention_mask": [[1] * end],
        }
        numbers = {
            name: np.array(rows, DTYPES[self._inputs[name].type])
            for name, rows in given.items()
            if name in self._inputs
        }
        return numbers | self._past

    def _empty(self, name: str) -> NDArray[Any]:
        """A past of no rows."""
        entry = self._inputs[name]
        heads, size = entry.shape[1], entry.shape[3]
        return np.zeros((1, heads, 0, size), DTYPES[entry.type])

    def _check_names(self) -> None:
        for name, entry in self._inputs.items():
            known = name in ("input_ids", "position_ids", "attention_mask") or name.startswith(PAST)
            if not known or entry.type not in DTYPES:
                self._refuse(
                    name,
                    "expected no inputs but input_ids, position_ids, attention_mask, past_key_values.*",
                    entry.type,
                )
            if name.startswith(PAST) and not (len(entry.shape) == 4 and _fixed(entry.shape[1], entry.shape[3])):
                self._refuse(name, "expected a cache [1, heads, past, size] with fixed heads and size", entry.shape)
        wanted = ["logits", *(_present(name) for name in self._inputs if name.startswith(PAST))]
        missing = [name for name in wanted if name not in self._outputs]
        if missing or "input_ids" not in self._inputs:
            self._refuse(missing[0] if missing else "input_ids", "expected it in the graph", "none")

    def _refuse(self, name: str, expected: str, found: object) -> None:
        raise InputError(self._model, f"{expected}, found {found}", field=name)


def read_graph(model: Path) -> onnx.ModelProto:
    """The graph without its external weights. Raises InputError."""
    import onnx

    if not model.is_file():
        raise InputError(model, "expected an ONNX file, found no such file")
    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's and the operating system's
        raise InputError(model, f"expected an ONNX file, found {_short(error)}") from None


def producers(graph: onnx.ModelProto) -> dict[str, str]:
    """The node (its name, or its operator where it has none) that makes each value of the main graph."""
    return {value: node.name or node.op_type for node in graph.graph.node for value in node.output if value}


def _open(model: Path, values: Sequence[str], threads: int) -> Any:
    import onnxruntime

    if not model.is_file():
        raise InputError(model, "expected an ONNX file, found no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = QUIET
    source: str | bytes = str(model)
    if values:
        source = _showing(model, values)
        options.add_session_config_entry(EXTERNAL_FOLDER, str(model.parent.resolve()))
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no base but this
        raise InputError(model, f"expected a model that loads, ONNX Runtime says: {_short(error)}") from None


def _showing(model: Path, values: Sequence[str]) -> bytes:
    """The model's bytes with these values among its outputs, their types left for ONNX Runtime to infer."""
    import onnx

    proto = read_graph(model)
    shown = {entry.name for entry in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(values) if name not in shown)
    return proto.SerializeToString()


def _present(past: str) -> str:
    return PRESENT + past.removeprefix(PAST)


def _fixed(*sizes: object) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
