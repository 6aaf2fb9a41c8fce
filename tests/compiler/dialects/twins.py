"""Which float32 file means exactly what a file in half precision, or with quantised weights, means?

Written from the documentation of the operators, not from the compiler: the compiler is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def twin_of(model: Path) -> Path:
    """Written beside the model: every number in it as float32, quantised weights multiplied out, and no operator that
    ONNX Runtime lacks on a CPU. The model itself if all that is so."""
    twin = onnx.load(model)
    graph = twin.graph
    if not is_quantised(graph) and half_in(graph) is None:
        return model
    names = _Names({tensor.name: tensor for tensor in graph.initializer}, _makers(graph))
    nodes = [made for node in graph.node for made in LIFTS.get(node.op_type, _same)(names, node)]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(_widened(tensor) for tensor in names.weights.values())
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        _widen_attributes(node)
    path = model.with_name(f"{model.stem}.twin.onnx")
    path.write_bytes(twin.SerializeToString())
    return path


def is_quantised(graph: onnx.GraphProto) -> bool:
    return any(node.op_type in ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear") for node in graph.node)


def half_in(graph: onnx.GraphProto, name: str = "") -> int | None:
    """The element type of constants in half precision, or of the one of this name; None if there are none."""
    kinds = [tensor.data_type for tensor in graph.initializer if name in ("", tensor.name)]
    return next((kind for kind in kinds if kind in HALVES), None)


@dataclass
class _Names:
    """What the names in a graph stand for; `weights` grows."""

    weights: dict[str, TensorProto]
    makers: dict[str, NodeProto]

    def array(self, name: str) -> Array:
        """An initializer, as it is or behind a Reshape, which leaves its bytes as they are."""
        tensor = self.weights.get(name) or self.weights[self.makers[name].input[0]]
        return numpy_helper.to_array(tensor)

    def add(self, array: Array, name: str) -> str:
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name


def _makers(graph: onnx.GraphProto) -> dict[str, NodeProto]:
    return {output: node for node in graph.node for output in node.output}


def _same(names: _Names, node: NodeProto) -> Iterator[NodeProto]:
    yield node


def _product(names: _Names, node: NodeProto) -> Iterator[NodeProto]:
    """MatMulNBits: x [.., K] times a matrix [N, K] whose rows are blocks, the last one filled up."""
    given = _attributes(node)
    matrix = _rows(names, [*node.input[1:4]], given.get("bits", 4), given["block_size"], given["N"])[:, : given["K"]]
    yield helper.make_node("MatMul", [node.input[0], names.add(matrix.T, f"{node.name}/twin")], [*node.output])


def _lookup(names: _Names, node: NodeProto) -> Iterator[NodeProto]:
    """GatherBlockQuantized: rows of a table, as long as whole blocks are."""
    given = _attributes(node)
    bits, size = given.get("bits", 4), given.get("block_size", 128)
    table = _rows(names, [node.input[0], *node.input[2:4]], bits, size, len(names.array(node.input[2])))
    yield helper.make_node("Gather", [names.add(table, f"{node.name}/twin"), node.input[1]], [*node.output])


def _rows(names: _Names, parts: list[str], bits: int, size: int, count: int) -> Array:
    """[count, blocks * size] from packed numbers, scales and, if there are any, zero points, low bits first."""
    packed, scales = names.array(parts[0]), names.array(parts[1]).astype(np.float32)
    numbers = _unpacked(packed.reshape(count, -1), bits).reshape(count, -1, size)
    zeros = np.full((count, numbers.shape[1]), 1 << (bits - 1))
    if len(parts) > 2 and parts[2]:
        zeros = _unpacked(names.array(parts[2]).reshape(count, -1), bits)[:, : numbers.shape[1]]
    rows = (numbers - zeros[..., None]) * scales.reshape(count, -1, 1)
    return rows.reshape(count, -1).astype(np.float32)


def _unpacked(rows: Array, bits: int) -> Array:
    halves = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1) if bits == 4 else rows
    return halves.astype(np.int32)


def _dequantised(names: _Names, node: NodeProto) -> Iterator[NodeProto]:
    """DequantizeLinear in blocks along an axis. Not as an operator: ONNX Runtime would fuse it with the product behind
    it, and compute that one in 8 bits."""
    given = _attributes(node)
    numbers, scales = names.array(node.input[0]).astype(np.int32), names.array(node.input[1]).astype(np.float32)
    zeros = names.array(node.input[2]).astype(np.int32) if len(node.input) > 2 else np.zeros(scales.shape, np.int32)
    axis, size = given["axis"], given["block_size"]
    zeros, scales = (np.repeat(each, size, axis).take(range(numbers.shape[axis]), axis) for each in (zeros, scales))
    matrix = ((numbers - zeros) * scales).astype(np.float32)
    yield helper.make_node("Identity", [names.add(matrix, f"{node.output[0]}/twin")], [*node.output])


def _norms_outside(names: _Names, node: NodeProto) -> Iterator[NodeProto]:
    """GroupQueryAttention that normalises the heads of query and key itself, which it does on GPUs only."""
    if len(node.input) < 16:
        yield node
        return
    given = _attributes(node)
    inputs = [*node.input[:9]]
    whole = names.add(np.array([0, 0, -1]), f"{node.name}/whole")
    for i, heads in enumerate((given["num_heads"], given["kv_num_heads"])):
        name, norm = f"{node.name}/twin/{i}", node.input[14 + i]
        split = names.add(np.array([0, 0, heads, -1]), f"{name}/split")
        yield helper.make_node("Reshape", [inputs[i], split], [f"{name}/heads"])
        yield helper.make_node(
            "SimplifiedLayerNormalization", [f"{name}/heads", norm], [f"{name}/normed"],
            axis=-1, epsilon=given["qk_norm_epsilon"],
        )  # fmt: skip
        yield helper.make_node("Reshape", [f"{name}/normed", whole], [f"{name}/y"])
        inputs[i] = f"{name}/y"
    kept = {name: value for name, value in given.items() if name != "qk_norm_epsilon"}
    yield helper.make_node(node.op_type, inputs, [*node.output], node.name, domain=node.domain, **kept)


LIFTS: dict[str, Callable[[_Names, NodeProto], Iterator[NodeProto]]] = {
    "MatMulNBits": _product,
    "GatherBlockQuantized": _lookup,
    "DequantizeLinear": _dequantised,
    "GroupQueryAttention": _norms_outside,
}


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _widened(tensor: TensorProto) -> TensorProto:
    """Every number of half precision is one of float32, too."""
    if tensor.data_type not in HALVES:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in HALVES:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_widened(attribute.t))
        for inner in attribute.g.node:
            _widen_attributes(inner)
