"""Is this ONNX model well-formed, and do its weights lie where it says, inside its folder? Checked before anything
follows a name or a number in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from hjgc.plan_format.errors import CompileError, InputError

KNOWN_OPSET = onnx.defs.onnx_opset_version()
CUT = "it may be damaged or cut short: copy or export it again"
PLACE_KEYS = ("location", "offset", "length", "checksum", "basepath")
NOT_ONNX = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
"""Operators of ONNX Runtime that its tools write into the domain of the standard ones."""
LAST_NOTE = "hjgc.model_type"
"""The very end of what `hjgc export` writes: without it the file was cut, at a place that protobuf does not notice."""


def check_proto(proto: onnx.ModelProto, path: Path, root: Path, *, function: bool = False) -> None:
    """`root` is the folder that its external data must lie in. Of a `function`, the nodes are ONNX Runtime's to judge.
    Raises InputError for a file that ends too early, CompileError for a graph that ONNX itself does not allow."""
    _check_text(proto, path)
    _check_whole(proto, path, function=function)
    _check_external_places(proto, path, root)
    _check_names(proto.graph, written_by(proto), path)
    if not function:
        _check_nodes(proto, path)


def _check_text(message: Message, path: Path) -> None:
    """Protobuf hands out a string that is no UTF-8 as bytes, which nobody expects."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in _repeated(value)):
            raise InputError(path, "expected names in UTF-8, found other bytes", field=field.full_name, next_step=CUT)
        if field.type == field.TYPE_MESSAGE:
            for each in _repeated(value):
                _check_text(each, path)


def _repeated(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, str | bytes | Message) else value


def _check_whole(proto: onnx.ModelProto, path: Path, *, function: bool) -> None:
    if not proto.graph.node and not (function and proto.graph.output):
        raise InputError(path, "expected an ONNX model with nodes, found an empty graph", next_step=CUT)
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if version is None and not proto.opset_import:
        problem = "expected the version of the standard operators, found none"
        raise InputError(path, problem, field="opset_import", next_step=CUT)
    if version is not None and version > KNOWN_OPSET:
        problem = f"expected version {KNOWN_OPSET} of the standard operators or one before it, found {version}"
        raise InputError(path, problem, field="opset_import", next_step="install a newer onnx, if there is one")
    if proto.producer_name == "hjgc" and LAST_NOTE not in {entry.key for entry in proto.metadata_props}:
        raise InputError(
            path, "expected what hjgc export writes last, found it missing", field=LAST_NOTE, next_step=CUT
        )


def written_by(model: onnx.ModelProto | ir.Model) -> str:
    """Who to ask about the graph, as the end of a sentence."""
    return f", written by {model.producer_name} {model.producer_version or ''}".rstrip() if model.producer_name else ""


def _check_names(graph: onnx.GraphProto, author: str, path: Path) -> None:
    """Every value is made, and made once. An initializer may give an input its default."""
    inputs = [value.name for value in graph.input]
    weights = [tensor.name for tensor in graph.initializer]
    made = [name for node in graph.node for name in node.output if name]
    for names in ([*inputs, *made], [*weights, *made]):
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise CompileError(path, "expected each value made once, found it twice", field=f"value {twice!r}")
    known = {"", *inputs, *weights, *made}
    if unknown := next((value.name for value in graph.output if value.name not in known), None):
        problem = f"expected a node that makes it, found none{author}"
        raise CompileError(path, problem, field=f"output {unknown!r}", next_step=CUT)
    for node in graph.node:
        if unknown := next((name for name in node.input if name not in known), None):
            problem = f"expected operands that the graph makes, found {unknown!r}, which nothing does{author}"
            raise CompileError(path, problem, field=f"node {node.name!r}", next_step=CUT)


def _check_nodes(proto: onnx.ModelProto, path: Path) -> None:
    """Inputs and attributes as the operators' schemas say. The rules refuse a node that holds a graph."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in proto.opset_import}
    for node in proto.graph.node:
        holds_graphs = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if holds_graphs or node.op_type in NOT_ONNX:
            continue
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError as error:
            words = str(error).split("==>")[0].split("\n")[0].strip()
            field = f"node {(node.name or ', '.join(node.output))!r}"
            raise CompileError(
                path,
                f"expected a standard operator, found {node.op_type}: {words}{written_by(proto)}",
                field=field,
                next_step="export it again with a newer release of its exporter, or report this graph",
            ) from None


def _check_external_places(proto: onnx.ModelProto, path: Path, root: Path) -> None:
    """Weights of the main graph may lie in files beside the model; nothing else may, and no file outside its folder."""
    functions = chain.from_iterable(function.node for function in proto.functions)
    for tensor in _attribute_tensors(chain(proto.graph.node, functions)):
        if _is_external(tensor):
            problem = "expected external data for weights only, found it in a node's attribute"
            raise CompileError(path, problem, field=f"tensor {tensor.name!r}")
    for tensor in filter(_is_external, proto.graph.initializer):
        field = f"initializer {tensor.name}"
        keys = [entry.key for entry in tensor.external_data]
        if "location" not in keys or len(set(keys)) < len(keys) or not set(keys) <= set(PLACE_KEYS):
            problem = f"expected each of {', '.join(PLACE_KEYS[:3])} at most once, found {', '.join(keys) or 'nothing'}"
            raise CompileError(path, problem, field=field, next_step=CUT)
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        check_location(location, path, root, field)


def check_location(location: str, path: Path, root: Path, field: str) -> None:
    """A relative path that stays inside `root`, by its words and by the links among its folders."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    plain = parts and ".." not in parts and ".." not in windows.parts and "\0" not in location
    if not plain or PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        problem = f"expected its data in a file inside the model's folder, found the place {location!r}"
        raise CompileError(path, problem, field=field, next_step="put the weights beside the model and name them so")
    folder = (root / location).parent
    if not folder.resolve().is_relative_to(root.resolve()):
        problem = f"expected its data inside the model's folder, found {location!r} to lead to {folder.resolve()}"
        raise CompileError(path, problem, field=field, next_step="put the weights beside the model and name them so")


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every tensor in an attribute, and in the graphs that attributes hold."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from graph.initializer
            yield from _attribute_tensors(graph.node)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)


def check_tensors(model: ir.Model, path: Path, file_bytes: int) -> None:
    """Every initializer is as long as its shape says, in its file or in the model's own `file_bytes`."""
    check_external_data(model, path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and not isinstance(tensor, ir.ExternalTensor):
            _check_inline(tensor, path, file_bytes)


def _check_inline(tensor: ir.TensorProtocol, path: Path, file_bytes: int) -> None:
    field = f"initializer {tensor.name}"
    if tensor.dtype == ir.DataType.STRING:
        return
    claimed = _bytes_of(tensor, path)
    if claimed > file_bytes:
        raise CompileError(path, f"expected {claimed} bytes for its shape, found a model of {file_bytes}", field=field)
    try:
        tensor.numpy()
    except Exception:
        problem = f"expected {claimed} bytes for its shape {tuple(tensor.shape)}, found others"
        raise CompileError(path, problem, field=field) from None


def check_external_data(model: ir.Model, path: Path) -> None:
    """Every external initializer must lie inside its file, and be as long as its shape says. Raises CompileError."""
    sizes: dict[Path, int | None] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.base_dir) / tensor.location
            if file not in sizes:
                sizes[file] = file.stat().st_size if os.path.isfile(file) else None
            _check_external(tensor, sizes[file], path)


def _check_external(tensor: ir.ExternalTensor, size: int | None, path: Path) -> None:
    field = f"initializer {tensor.name}"
    if size is None:
        problem = f"expected its data in {tensor.location}, found no such file"
        raise CompileError(path, problem, field=field, next_step="put the weights back beside the model")
    wanted, offset = _bytes_of(tensor, path), tensor.offset or 0
    length = size - offset if tensor.length is None else tensor.length
    if offset < 0 or wanted != length:
        problem = f"expected {wanted} bytes for its shape, found {length} at {offset}"
        raise CompileError(path, problem, field=field, next_step="export the model again")
    if offset + length > size:
        problem = f"expected {length} bytes at {offset} of {tensor.location}, found a file of {size}"
        raise CompileError(path, problem, field=field, next_step="the weight file is cut short: fetch it again")


def _bytes_of(tensor: ir.TensorProtocol, path: Path) -> int:
    shape = tuple(tensor.shape)
    if not all(isinstance(axis, int) and axis >= 0 for axis in shape):
        raise CompileError(path, f"expected a shape of counts, found {shape}", field=f"initializer {tensor.name}")
    try:
        return int(tensor.nbytes)
    except Exception:
        problem = f"expected elements of a known size, found {tensor.dtype.name.lower()}"
        raise CompileError(path, problem, field=f"initializer {tensor.name}") from None
