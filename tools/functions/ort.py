"""What does ONNX Runtime give for the inputs of a call?"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hjgc.plan_format.errors import InputError
from hjgc.plan_format.structs import Port
from hjgc.runtime.arguments import argument
from hjgc.runtime.backend import Value
from hjgc.runtime.ort_values import host_value, to_host, wrapped

QUIET = 4  # what it has to say comes back as an error


class OrtFunction:
    """An ONNX model on ONNX Runtime's CPU provider, called as a `Function` is. `threads` 0 leaves their number to it.

    Raises InputError for a model that is missing or that ONNX Runtime refuses."""

    def __init__(self, model: Path, threads: int = 0) -> None:
        self._ort: Any = importlib.import_module("onnxruntime")
        self._model = model
        options = self._ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = QUIET
        self._session = open_model(self._ort, model, options)
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Value]:
        """The outputs by name, as a `Function` gives them. Raises InputError for inputs that do not fit the model, and
        for what fails."""
        return self.read(self.bound(inputs)())

    def bound(self, inputs: Mapping[str, Any]) -> Callable[[], Sequence[Value]]:
        """What calls the model on these inputs, again and again; it gives ONNX Runtime's own values."""
        given = {port.name: argument(port, inputs.get(port.name)) for port in self.inputs}
        fed = {name: self._wrapped(value) for name, value in given.items() if value is not None}
        names = [port.name for port in self.outputs]
        if self._tensors_alone(fed.values()):
            return self._told(lambda: self._session.run_with_ort_values(names, fed))
        plain = {name: to_host(value) if self._is_own(value) else value for name, value in fed.items()}
        return self._told(lambda: self._session.run(names, plain))

    def read(self, values: Sequence[Value]) -> dict[str, Value]:
        """What a call gave, as arrays by name."""
        return {port.name: host_value(value) for port, value in zip(self.outputs, values, strict=True)}

    def _wrapped(self, value: Value) -> Value:
        return value if isinstance(value, list) else wrapped(self._ort, value)

    def _tensors_alone(self, fed: Iterable[Value]) -> bool:
        """Only these can be handed over as they are, without a copy on the way."""
        tensors = all(port.type.startswith("tensor(") for port in self.outputs)
        return tensors and all(self._is_own(value) for value in fed)

    def _is_own(self, value: Value) -> bool:
        return isinstance(value, self._ort.OrtValue)

    def _told(self, run: Callable[[], Sequence[Value]]) -> Callable[[], Sequence[Value]]:
        def told() -> Sequence[Value]:
            try:
                return run()
            except Exception as error:  # ONNX Runtime's own classes share no base but this
                words = short(error)
                raise InputError(self._model, f"expected a model that runs, ONNX Runtime says: {words}") from None

        return told


def open_model(
    ort: Any,
    model: Path,
    options: Any,
    source: bytes | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> Any:
    """The model's session on these providers; `source` stands for what is in the file. Raises InputError, also where
    ONNX Runtime by itself would try again with fewer providers."""
    if not model.is_file():
        raise InputError(model, "expected an ONNX file, found no such file")
    try:
        return ort.InferenceSession(source or str(model), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own classes share no base but this
        raise InputError(model, f"expected a model that loads, ONNX Runtime says: {short(error)}") from None


def short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _ports(entries: Sequence[Any]) -> tuple[Port, ...]:
    """What a session says of its inputs or outputs, as a function says it."""
    return tuple(Port(entry.name, "value", i, entry.type) for i, entry in enumerate(entries))
