"""What does ONNX Runtime say of values that ONNX cannot infer: what its own operators give, and all behind?"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import onnx
import onnx_ir as ir

from hjgc.compiler.function.islands import INSIDE_BYTES, bare_model, used_values
from hjgc.compiler.function.types import element_name

DTYPES = {f"tensor({element_name(kind.value)})": kind for kind in ir.DataType if kind != ir.DataType.UNDEFINED}
"""As ONNX Runtime spells them."""


def ask_onnx_runtime(model: ir.Model) -> None:
    """Types and shapes in place, if a type is missing and onnxruntime is installed. Weights are not read."""
    values = [value for node in model.graph for value in node.outputs if value.name]
    if all(value.type is not None for value in values) or find_spec("onnxruntime") is None:
        return
    unknown = {value.name or "": value for value in values if value.type is None or value.shape is None}
    for found in _answers(model, list(unknown)):
        value, kind = unknown[found.name], DTYPES.get(found.type)
        if kind is not None and value.dtype in (None, kind):
            value.type = value.type or ir.TensorType(kind)
            if value.shape is None and found.shape:  # it says [] of a single number, and of what has no known rank
                value.shape = ir.Shape(found.shape)


def _question(model: ir.Model, wanted: Sequence[str]) -> bytes:
    """The model with these results, and its large weights as inputs."""
    proto = bare_model(model, "types")
    graph = proto.graph
    graph.node.extend(map(ir.serde.serialize_node, model.graph))
    graph.input.extend(map(ir.serde.serialize_value, model.graph.inputs))
    used = dict.fromkeys(value for node in model.graph for value in used_values(node))
    for value in used:
        tensor = value.const_value if value.is_initializer() and not value.is_graph_input() else None
        if tensor is None:
            continue
        if isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > INSIDE_BYTES:
            shape = tuple(tensor.shape.numpy())
            graph.input.append(onnx.helper.make_tensor_value_info(value.name or "", tensor.dtype.value, shape))
        else:
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
            graph.initializer[-1].name = value.name or ""
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return proto.SerializeToString()


def _answers(model: ir.Model, wanted: Sequence[str]) -> Iterable[Any]:
    """What ONNX Runtime says of each; nothing if it does not take the model, of which the islands tell."""
    try:
        ort: Any = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        question = _question(model, wanted)
        return ort.InferenceSession(question, options, providers=["CPUExecutionProvider"]).get_outputs()
    except Exception:  # it raises a dozen kinds of its own, and a model may be too large to be written
        return ()
