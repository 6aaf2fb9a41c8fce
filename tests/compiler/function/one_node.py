"""What do hjgc and others make of a model of one node?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from hjgc.tools.onnx_backend import Backend

Array = Any  # of numpy
Shape = tuple[int | str, ...]


def some(*shape: int, dtype: type = np.float32) -> Array:
    return np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape).astype(dtype)


def model_of(
    op: str,
    inputs: Sequence[Array | None],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 23,
    shapes: Mapping[int, Shape] | None = None,
    constants: Sequence[int] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """Operands are arguments `x0`, `x1`, ... of these shapes, or of those that the arrays have; or constants."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    given = {i: array for i, array in enumerate(inputs) if array is not None}
    declared = [
        onnx.helper.make_tensor_value_info(
            f"x{i}", onnx.helper.np_dtype_to_tensor_dtype(array.dtype), (shapes or {}).get(i, array.shape)
        )
        for i, array in given.items()
        if i not in constants
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, outputs, **attributes)],
        "one",
        declared,
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name],
        [onnx.numpy_helper.from_array(array, f"x{i}") for i, array in given.items() if i in constants],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))


def ours(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> tuple[list[str], list[Any]]:
    """The ops of the node's launches in order, but for copies into results of their own, and the results."""
    names = {axis.dim_param for value in model.graph.input for axis in value.type.tensor_type.shape.dim} - {""}
    prepared = Backend.prepare(model, sizes=dict.fromkeys(names, (1, 16)))
    try:
        launches = [launch for phase in prepared.plan.phases for launch in phase.launches]
        own = [launch.op for launch in launches if not launch.name.endswith(".copy")]
        return own, list(prepared.run(_fed(model, inputs)))
    finally:
        prepared.close()


def onnx_runtime(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, _fed(model, inputs)))


def onnx_itself(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> list[Any]:
    """By ONNX's own reference, for what ONNX Runtime has not, or has otherwise."""
    return list(ReferenceEvaluator(model).run(None, _fed(model, inputs)))


def check_native(
    op: str, inputs: Sequence[Array | None], *, oracle: Any = onnx_runtime, tolerance: float = 1e-5, **more: Any
) -> list[str]:
    """No island computes it, and the results are those of another. The launches' ops."""
    model = model_of(op, inputs, **more)
    launches, found = ours(model, inputs)
    assert "island" not in launches
    for mine, wanted in zip(found, oracle(model, inputs), strict=True):
        assert mine.dtype == wanted.dtype
        np.testing.assert_allclose(mine, wanted, rtol=tolerance, atol=tolerance)
    return launches


def check_island(op: str, inputs: Sequence[Array | None], *, tolerance: float = 1e-5, **more: Any) -> None:
    """ONNX Runtime computes it, and its results arrive."""
    model = model_of(op, inputs, **more)
    launches, found = ours(model, inputs)
    assert launches == ["island"]
    for mine, wanted in zip(found, onnx_runtime(model, inputs), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=tolerance, atol=tolerance)


def _fed(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> dict[str, Any]:
    return {value.name: np.asarray(inputs[int(value.name[1:])]) for value in model.graph.input}
