"""What is the sub-model of an island between two launches of a decoder, and does it look at one row at a time?

Its rows come and go as launches have them, [tokens, H] in the plan's type. Inside they are the file's activations
[1, tokens, H] in float32, as are all floating-point numbers: the plan dropped the file's casts between floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hjgc.compiler.foreign import Axes, Foreign
from hjgc.compiler.function.islands import INSIDE_BYTES, MANY_NODES, SubModel, bare_model, open_island, used_values
from hjgc.compiler.rules.rule import FLOATS, is_op, source_nodes
from hjgc.compiler.tables import read_tensor
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.errors import CompileError

Rows = NDArray[Any]
PLAN_TYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
AXIS = "~axis"
TRIED_ROWS = (5, 33, 700)
"""The last is past what a prompt has in one call, and past most windows and tables."""
MANY = 64
"""From so many rows on, only a few are tried alone."""
SCALES = (1e-3, 1.0, 300.0)
"""Of made-up rows: something may be cut off, or begin, at some size."""
MOST_AT_LENGTH = 64 << 20
"""Bytes of weights up to which the last count is tried: experts that gather theirs take so much for each row."""
TOLERANCE = 1e-3
"""Between a row alone and among others, relative to the largest number: float32 sums in another order."""
MOST_TRIED = 1 << 30
"""Bytes of weights that are made up for a trial."""


def foreign_model(
    model: ir.Model, foreign: Foreign, dtype: DType, *, batched: bool = False
) -> tuple[SubModel, list[ir.Value]]:
    """The sub-model, and the weights that it takes behind the rows: those that are too large to lie in it. `batched`:
    rows come and go as the file has them, [1, tokens, H]."""
    proto = bare_model(model, "island")
    graph, kind = proto.graph, PLAN_TYPES[dtype]
    graph.initializer.append(helper.make_tensor(AXIS, TensorProto.INT64, [1], [0]))
    for value in foreign.inputs:
        shape = [1, "rows", None] if batched else ["rows", None]
        graph.input.append(helper.make_tensor_value_info(f"{value.name}~in", kind, shape))
        graph.node.extend(_entering(value.name or "", batched=batched))
    first = graph.input[0].name
    weights = list(_weights(graph, foreign))
    nodes = list(dict.fromkeys(name for node in foreign.nodes for name in source_nodes(node)))
    places: list[int | None] = [None] * len(graph.node)
    for node in foreign.nodes:
        axes = foreign.sizes.get(node)
        graph.node.extend(
            _spelt(node) if axes is None else _sizes(node.outputs[0].name or "", axes, first, int(batched))
        )
        places += [nodes.index(source_nodes(node)[0])] * (len(graph.node) - len(places))
    names: list[str] = []
    for value in foreign.outputs:
        names.append(f"{value.name}~out")
        graph.output.append(helper.make_tensor_value_info(names[-1], kind, None))
        graph.node.extend(_leaving(value.name or "", names[-1], kind, batched=batched))
    places += [None] * (len(graph.node) - len(places))
    inputs = [entry.name for entry in graph.input]
    data = proto.SerializeToString(deterministic=True)
    return SubModel(data, inputs, names, tuple(nodes[:MANY_NODES]), tuple(places)), weights


def _entering(name: str, *, batched: bool) -> Iterator[onnx.NodeProto]:
    wide = name if batched else f"{name}~wide"
    yield helper.make_node("Cast", [f"{name}~in"], [wide], to=TensorProto.FLOAT)
    if not batched:
        yield helper.make_node("Unsqueeze", [wide, AXIS], [name])


def _sizes(result: str, axes: Axes, rows: str, axis_of_rows: int) -> Iterator[onnx.NodeProto]:
    """What a Shape node finds, from the rows of this call."""
    parts: list[str] = []
    for i, axis in enumerate(axes):
        parts.append(f"{result}~{i}")
        if isinstance(axis, str):  # TOKENS
            yield helper.make_node("Shape", [rows], [parts[-1]], start=axis_of_rows, end=axis_of_rows + 1)
        else:
            number = helper.make_tensor("number", TensorProto.INT64, [1], [axis])
            yield helper.make_node("Constant", [], [parts[-1]], value=number)
    yield helper.make_node("Concat", parts, [result], axis=0)


def _leaving(name: str, result: str, kind: int, *, batched: bool) -> Iterator[onnx.NodeProto]:
    rows = name if batched else f"{name}~rows"
    if not batched:
        yield helper.make_node("Squeeze", [name, AXIS], [rows])
    yield helper.make_node("Cast", [rows], [result], to=kind)


def _spelt(node: ir.Node) -> Iterator[onnx.NodeProto]:
    """A node of the file; one of our own words as ONNX spells it."""
    if is_op(node, "Silu"):
        x, y = (node.inputs[0].name if node.inputs[0] else "") or "", node.outputs[0].name or ""
        yield helper.make_node("Sigmoid", [x], [f"{y}~sigmoid"])
        yield helper.make_node("Mul", [x, f"{y}~sigmoid"], [y])
    else:
        proto = ir.serde.serialize_node(node)
        _widen(proto)
        yield proto


def _widen(node: onnx.NodeProto) -> None:
    """Half precision that an attribute asks for is float32, as everything else."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in HALVES:
            attribute.i = TensorProto.FLOAT
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            if tensor.data_type in HALVES:
                wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                _widen(inner)


def _weights(graph: onnx.GraphProto, foreign: Foreign) -> Iterator[ir.Value]:
    """Initializers: small ones inside, floats as float32; of large ones inputs, which are yielded."""
    values = dict.fromkeys(value for node in foreign.nodes for value in used_values(node))
    for value in (value for value in values if value.is_initializer()):
        tensor, name = value.const_value, value.name or ""
        assert tensor is not None, "an initializer"
        if tensor.nbytes <= INSIDE_BYTES or tensor.dtype not in FLOATS:
            array = read_tensor(tensor)
            wide = array.astype(np.float32) if tensor.dtype in FLOATS else array
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(wide), name))
            continue
        shape = [int(axis) for axis in tensor.shape.numpy()]
        wide_already = tensor.dtype == ir.DataType.FLOAT
        graph.input.append(helper.make_tensor_value_info(name if wide_already else f"{name}~in", tensor.dtype, shape))
        if not wide_already:
            graph.node.append(helper.make_node("Cast", [f"{name}~in"], [name], to=TensorProto.FLOAT))
        yield value


def try_rows(made: SubModel, weights: Sequence[ir.Value], widths: Sequence[int], path: Path) -> str | None:
    """Run a sub-model in float32 on made-up rows, all together, in parts, and each alone. A note where it could not be
    tried. Raises CompileError where they differ, or where ONNX Runtime does not take it."""
    named = ", ".join(made.nodes[:3])
    if find_spec("onnxruntime") is None:
        problem = "expected onnxruntime, which is to compute what no launch of ours does, found it not installed"
        raise CompileError(path, problem, field=f"node {named}", next_step="try pip install 'hjgc[ort]'")
    large = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    if large > MOST_TRIED:
        return f"node {named}: that it computes each row by itself was not tried, its weights take {large >> 20} MiB"
    session, random = open_island(made.data, made.nodes, path), np.random.default_rng(20261129)
    fixed = {name: _made_up(value, random) for name, value in zip(made.inputs[len(widths) :], weights, strict=True)}

    def run(rows: Sequence[Rows]) -> list[Any]:
        return session.run(list(made.outputs), dict(zip(made.inputs, rows, strict=False)) | fixed)

    counts = TRIED_ROWS if large <= MOST_AT_LENGTH else TRIED_ROWS[:-1]
    for count, scale in ((count, scale) for count in counts for scale in SCALES):
        rows = [np.float32(scale) * random.standard_normal((count, width), np.float32) for width in widths]
        if not _each_alone(run, rows):
            problem = f"expected it to compute each row by itself, found other numbers among {count} rows"
            raise CompileError(path, problem, field=f"node {named}")
    if len(counts) < len(TRIED_ROWS):
        return f"node {named}: that it computes each row by itself was tried up to {counts[-1]} rows, not more"
    return None


def _each_alone(run: Callable[[Sequence[Rows]], list[Any]], rows: Sequence[Rows]) -> bool:
    """Are results the same for all rows together, in two parts, and for single ones?"""
    count = len(rows[0])
    whole = run(rows)
    singles = range(count) if count < MANY else (0, 1, count // 2, count - 1)
    parts = [slice(0, count // 2), slice(count // 2, count), *(slice(i, i + 1) for i in singles)]
    for part in parts:
        alone = run([each[part] for each in rows])
        if not all(_close(np.asarray(a)[part], np.asarray(b)) for a, b in zip(whole, alone, strict=True)):
            return False
    return True


def _close(one: Rows, other: Rows) -> bool:
    """Numbers that are none, or infinite, must be so in both."""
    if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return False
    finite = np.isfinite(one)
    scale = float(np.abs(one[finite]).max(initial=1e-6))
    return bool(np.abs(one[finite] - other[finite]).max(initial=0) <= TOLERANCE * scale)


def _made_up(value: ir.Value, random: np.random.Generator) -> NDArray[Any]:
    """Numbers for a weight that keep sums near 1."""
    tensor = value.const_value
    assert tensor is not None
    shape = tuple(int(axis) for axis in tensor.shape.numpy())
    numbers = random.standard_normal(shape, np.float32) / np.sqrt(max(shape[-1:], default=1))
    return numbers.astype(tensor.dtype.numpy())
