"""What does ONNX Runtime compute for a decoder in ONNX, step by step?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hjgc.compiler.interface import Sizes, dimension, read_interface, unknown_inputs
from hjgc.plan_format.errors import InputError
from hjgc.tools.functions.ort import open_model, short

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
QUIET = 3  # errors only


class Judge:
    """An ONNX decoder on ONNX Runtime's CPU provider, fed with the cache that it gives; without a cache, with all
    tokens each time. `values` are ONNX values that it also shows after each step. `cache` is heads and head size,
    for graphs whose inputs leave them open. `threads` 0 leaves the number to ONNX Runtime.

    Raises InputError for a model that is missing, that ONNX Runtime refuses, or with inputs that nobody knows."""

    def __init__(
        self, model: Path, *, values: Sequence[str] = (), cache: tuple[int, int] | None = None, threads: int = 0
    ) -> None:
        self._model, self._cache = model, cache
        self._session = _open(model, values, threads)
        self._interface = read_interface(_structure(model), model)
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self._presents = {slot: str(value.name) for value, slot in self._interface.presents.items()}
        self._check()
        self.values: dict[str, NDArray[Any]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the prompt."""
        self.length = 0
        self._ids: list[int] = []
        self._past = {slot: self._empty(value) for value, slot in self._interface.caches.items()}

    def step(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits [V] after these tokens, which follow those of the steps before."""
        self._ids = [*ids] if self._past else [*self._ids, *ids]
        sizes = Sizes(self.length, len(ids)) if self._past else Sizes(0, len(self._ids))
        try:
            results = self._session.run(self._outputs, self._feeds(sizes))
        except Exception as error:  # ONNX Runtime's own classes share no base but this
            raise InputError(self._model, f"expected a model that runs, ONNX Runtime says: {short(error)}") from None
        self.values = dict(zip(self._outputs, results, strict=True))
        self._past = {slot: self.values[self._presents[slot]] for slot in self._past}
        self.length += len(ids)
        return np.asarray(self.values[str(self._interface.logits.name)][0, -1], dtype=np.float32)

    def _feeds(self, sizes: Sizes) -> dict[str, Any]:
        interface = self._interface
        feeds = {interface.ids: np.array([self._ids]), **interface.known(sizes)}
        feeds |= {value: self._past[slot] for value, slot in interface.caches.items()}
        feeds |= {value: np.zeros(()) for value in interface.others if value not in feeds}
        return {str(value.name): array.astype(_numpy(value)) for value, array in feeds.items()}

    def _empty(self, value: ir.Value) -> NDArray[Any]:
        """A past of no rows, with room for those to come if the graph wants it so."""
        assert value.shape is not None
        heads, size = dimension(value.shape[1]), dimension(value.shape[3])
        if heads is None or size is None:
            if self._cache is None:
                self._refuse(value, "expected a cache [1, heads, past, size] with fixed heads and size", value.shape)
            heads, size = self._cache or (0, 0)
        return np.zeros((1, heads, self._interface.rows(value, Sizes(0, 1)), size), _numpy(value))

    def _check(self) -> None:
        for value in unknown_inputs(self._interface):
            self._refuse(value, "expected token ids, positions, masks, lengths and caches as inputs", "another")
        for value, slot in self._interface.caches.items():
            if value.shape is None or len(value.shape) != 4:
                self._refuse(value, "expected a cache [1, heads, past, size]", value.shape)
            if slot not in self._presents:
                self._refuse(value, "expected an output that gives this cache with new rows", "none")

    def _refuse(self, value: ir.Value, expected: str, found: object) -> None:
        raise InputError(self._model, f"{expected}, found {found}", field=str(value.name))


def _structure(model: Path) -> ir.Model:
    """The graph as onnx_ir holds it, without its weights."""
    import onnx_ir as ir

    return ir.from_proto(read_graph(model))


def _numpy(value: ir.Value) -> Any:
    assert value.dtype is not None
    return value.dtype.numpy()


def read_graph(model: Path) -> onnx.ModelProto:
    """The graph without its external weights. Raises InputError."""
    import onnx

    if not model.is_file():
        raise InputError(model, "expected an ONNX file, found no such file")
    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's and the operating system's
        raise InputError(model, f"expected an ONNX file, found {short(error)}") from None


def producers(graph: onnx.ModelProto) -> dict[str, str]:
    """The node (its name, or its operator where it has none) that makes each value of the main graph."""
    return {value: node.name or node.op_type for node in graph.graph.node for value in node.output if value}


def _open(model: Path, values: Sequence[str], threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = QUIET
    if not values:
        return open_model(onnxruntime, model, options)
    options.add_session_config_entry(EXTERNAL_FOLDER, str(model.parent.resolve()))
    return open_model(onnxruntime, model, options, _showing(model, values))


def _showing(model: Path, values: Sequence[str]) -> bytes:
    """The model's bytes with these values among its outputs, their types left for ONNX Runtime to infer."""
    import onnx

    proto = read_graph(model)
    shown = {entry.name for entry in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(values) if name not in shown)
    return proto.SerializeToString()
