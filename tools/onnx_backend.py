"""How does ONNX's own conformance suite run on hjgc? `Backend` is what `onnx.backend.test` asks for.

import onnx.backend.test
import hjgc.tools.onnx_backend as backend

tests = onnx.backend.test.BackendTest(backend.Backend, __name__)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep, Device, DeviceType

from hjgc.compiler import compile_model
from hjgc.plan_format.structs import Plan
from hjgc.runtime.opening import open_plan, start_function


class PreparedModel(BackendRep):
    """A model that was compiled as a function, ready to run."""

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, tuple[int, int]] | None = None) -> None:
        with tempfile.TemporaryDirectory(prefix="hjgc-") as folder:
            path = Path(folder)
            onnx.save_model(model, path / "model.onnx")
            compile_model(path / "model.onnx", path / "plan.hjg", kind="function", sizes=sizes)
            self._function = start_function(open_plan(path / "plan.hjg"), device="cpu")

    @property
    def plan(self) -> Plan:
        return self._function.plan

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in order, from inputs in order or by name."""
        del kwargs
        names = [port.name for port in self._function.inputs]
        given = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))
        return tuple(self._function(given).values())

    def close(self) -> None:
        self._function.close()


class Backend(OnnxBackend):
    """Compiles a model for the CPU and runs the plan."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """Raises CompileError, InputError, PlanError for a model that cannot be compiled."""
        return PreparedModel(model, kwargs.get("sizes"))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        prepared = cls.prepare(model, device, **kwargs)
        try:
            return prepared.run(inputs)
        finally:
            prepared.close()

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """A model of this node alone; its inputs are arrays, its outputs are found."""
        import numpy as np

        arrays = [np.asarray(x) for x in inputs]
        declared = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip((name for name in node.input if name), arrays, strict=True)
        ]
        announced = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", declared, announced)
        opset = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return cls.run_model(model, arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return Device(device).type == DeviceType.CPU


prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
