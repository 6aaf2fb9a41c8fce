"""How do ONNX initializers become the plan's weights and constants, each once?"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace
from numpy.typing import NDArray

from hjgc.compiler.program import Step, Tensor
from hjgc.plan_format.dtypes import ITEM_BYTES, DType
from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.structs import Blocks, Constant, Part, Placement, Source, Weight

MAX_INLINE_BYTES = 1 << 20
SMALL_BYTES = 1 << 16
"""Tensors of a function up to this size lie inside the plan."""
MOST_INSIDE = 1 << 26
"""And up to this one, where their bytes lie in no file as they are."""
CONSTANT_ALIGNMENT = 64
DTYPES: dict[ir.DataType, DType] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
ALL_DTYPES: dict[ir.DataType, DType] = {
    **DTYPES,
    ir.DataType.DOUBLE: "float64",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.INT16: "int16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT64: "uint64",
    ir.DataType.UINT32: "uint32",
    ir.DataType.UINT16: "uint16",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}
"""Those of functions."""
NUMPY: dict[DType, type] = {"float32": np.float32, "float16": np.float16}


def dtype_of(value: ir.Value) -> DType | None:
    """A function value's element type, if a buffer can hold it."""
    return None if value.dtype is None else ALL_DTYPES.get(value.dtype)


@dataclass
class Tables:
    """Collects weights (sources in files) and constants (bytes in the plan). `path` is only for messages."""

    path: Path
    weights_dtype: DType
    files: list[Path] = field(default_factory=list[Path])
    weights: dict[tuple[str, ...], Weight] = field(default_factory=dict[tuple[str, ...], Weight])
    constants: dict[str, Constant] = field(default_factory=dict[str, Constant])
    constant_bytes: bytearray = field(default_factory=bytearray)
    _plain: dict[tuple[str, str], Tensor] = field(default_factory=dict[tuple[str, str], Tensor])
    _shaped: dict[tuple[str, int, tuple[int, ...]], Tensor] = field(
        default_factory=dict[tuple[str, int, tuple[int, ...]], Tensor]
    )
    _stacks: dict[tuple[tuple[str, int, bool], ...], Tensor] = field(
        default_factory=dict[tuple[tuple[str, int, bool], ...], Tensor]
    )
    _model: mmap.mmap | None = None
    _cursor: int = 0
    """Weights inside the model tend to lie in the order of their use."""

    def weight(self, values: list[ir.Value], transposed: list[bool] | None = None) -> Tensor:
        """The weights stacked along axis 0 as one packed weight; the same stack is made once."""
        names = tuple(value.name or "" for value in values)
        flags = transposed or [False] * len(values)
        key = tuple(f"{name}.T" if flag else name for name, flag in zip(names, flags, strict=True))
        if key not in self.weights:
            self.weights[key] = self._pack(self._unique("+".join(key)), values, flags)
        return self._weight_tensor(key)

    def constant(self, value: ir.Value, dtype: DType) -> Tensor:
        """A small initializer as a constant of the plan, converted to `dtype`."""
        name = value.name or ""
        if name not in self.constants:
            self.constants[name] = self._store(name, value, dtype)
        return self._constant_tensor(name)

    def tensor(self, value: ir.Value, placement: Placement = "device") -> Tensor:
        """An initializer as it is, of any rank and type that `ALL_DTYPES` has: inside the plan if it is small, else
        where it lies. Only islands read what is placed on the `cpu`."""
        key = (value.name or "", placement)
        if key not in self._plain:
            self._plain[key] = self._as_it_is(value, placement)
        return self._plain[key]

    def _as_it_is(self, value: ir.Value, placement: Placement) -> Tensor:
        tensor = value.const_value
        assert tensor is not None, "an initializer"
        own = value.name or "weight"
        name = self._unique(own if placement == "device" else f"{own}@{placement}")
        shape, dtype = tuple(int(axis) for axis in tensor.shape.numpy()), ALL_DTYPES[tensor.dtype]
        if tensor.nbytes > SMALL_BYTES and (part := self._found(value, dtype)) is not None:
            source = Source(part.file, part.offset, part.length, dtype, shape)
            return self._own(Weight(name, dtype, shape, part.length, (source,), placement=placement))
        if tensor.nbytes > MOST_INSIDE:
            problem = f"expected its {tensor.nbytes} bytes in a row in a file, found them nowhere"
            raise CompileError(
                self.path, problem, field=f"initializer {name}", next_step="save the model with external data"
            )
        data = read_tensor(tensor).tobytes() if isinstance(tensor, ir.ExternalTensor) else tensor.tobytes()
        return self._inside(name, data, dtype, shape)

    def whole_numbers(self, name: str, numbers: Sequence[int], shape: tuple[int, ...], dtype: DType) -> Tensor:
        """Numbers that the compiler found as a constant of the plan."""
        return self._inside(self._unique(name), np.array(numbers, dtype).tobytes(), dtype, shape)

    def number(self, tensor: Tensor) -> float | int | None:
        """The one element of a constant; None if it is of a type that numpy has not."""
        entry = list(self.constants.values())[tensor.index]
        if entry.dtype == "bfloat16":
            return None
        data = bytes(self.constant_bytes[entry.offset : entry.offset + entry.length])
        return np.frombuffer(data, entry.dtype)[0].item()

    def stacked(self, tensors: Sequence[Tensor], transposed: Sequence[bool]) -> Tensor | None:
        """Matrices, or rows of numbers, stacked along axis 0, each transposed before where that is said, as one weight
        or constant; None if some lie in files and others inside the plan."""
        key = tuple((x.space, x.index, flag) for x, flag in zip(tensors, transposed, strict=True))
        if key not in self._stacks:
            name = "+".join(f"{x.name}.T" if flag else x.name for x, flag in zip(tensors, transposed, strict=True))
            spaces = {tensor.space for tensor in tensors}
            if spaces == {"weight"}:
                self._stacks[key] = self._stacked_weight(name, tensors, transposed)
            elif spaces == {"constant"}:
                self._stacks[key] = self._stacked_constant(name, tensors, transposed)
            else:
                return None
        return self._stacks[key]

    def _stacked_weight(self, name: str, tensors: Sequence[Tensor], transposed: Sequence[bool]) -> Tensor:
        weights = [list(self.weights.values())[tensor.index] for tensor in tensors]
        sources = tuple(
            replace(source, transpose=source.transpose != flag)
            for weight, flag in zip(weights, transposed, strict=True)
            for source in weight.sources
        )
        shapes = [x.shape[::-1] if flag else x.shape for x, flag in zip(weights, transposed, strict=True)]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        size = sum(weight.bytes for weight in weights)
        return self._own(Weight(self._unique(name[:200]), weights[0].dtype, shape, size, sources))

    def _stacked_constant(self, name: str, tensors: Sequence[Tensor], transposed: Sequence[bool]) -> Tensor:
        parts: list[NDArray[Any]] = []
        entries = list(self.constants.values())
        for tensor, flag in zip(tensors, transposed, strict=True):
            entry = entries[tensor.index]
            data = bytes(self.constant_bytes[entry.offset : entry.offset + entry.length])
            part = np.frombuffer(data, f"V{ITEM_BYTES[entry.dtype]}").reshape(entry.shape)
            parts.append(part.T if flag else part)
        whole = np.concatenate(parts)
        return self._inside(self._unique(name[:200]), whole.tobytes(), tensors[0].dtype, whole.shape)

    def keep(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """Forget weights and constants that none of these steps names; the steps, with the places of those left."""
        named = {(x.space, x.index) for step in steps for x in step.operands.values()}
        weights = [i for i in range(len(self.weights)) if ("weight", i) in named]
        constants = [i for i in range(len(self.constants)) if ("constant", i) in named]
        places = {("weight", old): new for new, old in enumerate(weights)}
        places |= {("constant", old): new for new, old in enumerate(constants)}
        self.weights = {key: w for i, (key, w) in enumerate(self.weights.items()) if ("weight", i) in named}
        left = [entry for i, entry in enumerate(self.constants.values()) if ("constant", i) in named]
        self._keep_constants(left)
        return tuple(replace_places(step, places) for step in steps)

    def _keep_constants(self, entries: Sequence[Constant]) -> None:
        """Those that share bytes go on doing so."""
        data, moved = bytearray(), dict[tuple[int, int], int]()
        self.constants = {}
        for entry in entries:
            part = (entry.offset, entry.length)
            if part not in moved:
                data += bytes(-len(data) % CONSTANT_ALIGNMENT)
                moved[part] = len(data)
                data += self.constant_bytes[entry.offset : entry.offset + entry.length]
            self.constants[entry.name] = replace(entry, offset=moved[part])
        self.constant_bytes = data

    def reshaped(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same elements in another shape: of a constant the same bytes, of a weight a copy when it is loaded."""
        key = (tensor.space, tensor.index, shape)
        if key not in self._shaped:
            self._shaped[key] = self._in_shape(tensor, shape)
        return self._shaped[key]

    def _in_shape(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        name = self._unique(tensor.name)
        if tensor.space == "constant":
            entry = list(self.constants.values())[tensor.index]
            self.constants[name] = replace(entry, name=name, shape=shape)
            return self._constant_tensor(name)
        weight = list(self.weights.values())[tensor.index]
        return self._own(replace(weight, name=name, shape=shape, sources=(replace(weight.sources[0], shape=shape),)))

    def _unique(self, wanted: str) -> str:
        """A name that no weight and no constant has: files name theirs as they like."""
        taken = {*self.constants, *(weight.name for weight in self.weights.values())}
        return next(name for i in count(1) if (name := wanted if i == 1 else f"{wanted}~{i}") not in taken)

    def _own(self, weight: Weight) -> Tensor:
        """A weight of one source, under its name and no stack's."""
        self.weights[("as it is", weight.name)] = weight
        return self._weight_tensor(("as it is", weight.name))

    def _found(self, value: ir.Value, dtype: DType) -> Part | None:
        """Where its bytes lie, if they lie in a file as they are."""
        try:
            return self._part(value, dtype)
        except CompileError:
            return None

    def _inside(self, name: str, data: bytes, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        self.constant_bytes += bytes(-len(self.constant_bytes) % CONSTANT_ALIGNMENT)
        self.constants[name] = Constant(name, dtype, shape, len(self.constant_bytes), len(data))
        self.constant_bytes += data
        return self._constant_tensor(name)

    def _constant_tensor(self, name: str) -> Tensor:
        entry = self.constants[name]
        return Tensor(name, "constant", entry.dtype, entry.shape, list(self.constants).index(name))

    def _weight_tensor(self, key: tuple[str, ...]) -> Tensor:
        weight = self.weights[key]
        return Tensor(weight.name, "weight", weight.dtype, weight.shape, list(self.weights).index(key))

    def _pack(self, name: str, values: list[ir.Value], flags: list[bool]) -> Weight:
        sources = [self._source(value, flag) for value, flag in zip(values, flags, strict=True)]
        shapes = [source.shape[::-1] if source.transpose else source.shape for source in sources]
        if len({shape[1:] for shape in shapes}) != 1:
            raise CompileError(self.path, f"expected weights of one width, found {shapes}", field=f"initializer {name}")
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        size = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[self.weights_dtype]
        return Weight(name, self.weights_dtype, shape, size, tuple(sources))

    def _source(self, value: ir.Value, transpose: bool) -> Source:
        maker = value.producer()
        if maker is not None and maker.op_type == "Dequantise":
            return self._quantised(maker, transpose)
        tensor, field = value.const_value, f"initializer {value.name}"
        if tensor is None or tensor.dtype not in DTYPES:
            known = ", ".join(DTYPES.values())
            found = "no numbers" if tensor is None else tensor.dtype.name.lower()
            raise CompileError(self.path, f"expected one of {known}, found {found}", field=field)
        part = self._part(value, DTYPES[tensor.dtype])
        shape = tuple(int(axis) for axis in tensor.shape.numpy())
        return Source(part.file, part.offset, part.length, part.dtype, shape, transpose=transpose)

    def _quantised(self, node: ir.Node, transpose: bool) -> Source:
        """A Dequantise node: numbers, scales, zero points if there are any."""
        numbers, scales, zeros = (*node.inputs, None)[:3]
        assert numbers is not None and scales is not None
        kind = None if scales.dtype is None else DTYPES.get(scales.dtype)
        if kind is None:
            found = "none" if scales.dtype is None else scales.dtype.name.lower()
            raise CompileError(
                self.path, f"expected scales of a floating-point type, found {found}", field=f"node {node.name}"
            )
        part = self._part(numbers, "uint8")
        blocks = Blocks(
            bits=8 if node.attributes.get_int("bits", 4) == 8 else 4,
            size=node.attributes.get_int("size", 0),
            axis=1 if node.attributes.get_int("axis", 1) else 0,
            scales=self._part(scales, kind),
            zeros=None if zeros is None else self._part(zeros, "uint8"),
            signed=bool(node.attributes.get_int("signed", 0)),
        )
        shape = tuple(node.attributes["shape"].as_ints())
        return Source(part.file, part.offset, part.length, part.dtype, shape, transpose=transpose, blocks=blocks)

    def _part(self, value: ir.Value, dtype: DType) -> Part:
        """Where an initializer's bytes lie."""
        tensor, field = value.const_value, f"initializer {value.name}"
        if tensor is None:
            raise CompileError(self.path, "expected an initializer, found none", field=field)
        file, offset = self._place(tensor, field)
        if file not in self.files:
            self.files.append(file)
        return Part(self.files.index(file), offset, tensor.nbytes, dtype)

    def _place(self, tensor: ir.TensorProtocol, field: str) -> tuple[Path, int]:
        """File and offset. Of a weight inside the model, a place in the model's own file with the same bytes."""
        if isinstance(tensor, ir.ExternalTensor):
            return Path(tensor.base_dir) / tensor.location, tensor.offset or 0
        if self._model is None and self.path.is_file():
            with open(self.path, "rb") as file:
                self._model = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = tensor.tobytes()
        found = -1
        if self._model is not None and data:
            found = self._model.find(data, self._cursor)
            found = self._model.find(data) if found < 0 else found
        if found < 0:
            raise CompileError(
                self.path, "expected its bytes in a row, in the model or in a weight file, found them nowhere",
                field=field, next_step="save the model with external data for every weight",
            )  # fmt: skip
        self._cursor = found + len(data)
        return self.path, found

    def _store(self, name: str, value: ir.Value, dtype: DType) -> Constant:
        tensor = value.const_value
        if tensor is None or tensor.nbytes > MAX_INLINE_BYTES:
            raise CompileError(self.path, "expected a small constant, found none or a large one", field=name)
        data = read_tensor(tensor).astype(NUMPY[dtype]).tobytes()
        self.constant_bytes += bytes(-len(self.constant_bytes) % CONSTANT_ALIGNMENT)
        shape = tuple(int(axis) for axis in tensor.shape.numpy())
        entry = Constant(name, dtype, shape, len(self.constant_bytes), len(data))
        self.constant_bytes += data
        return entry


def replace_places(step: Step, places: Mapping[tuple[str, int], int]) -> Step:
    """The step with its weights and constants at other places of their tables."""
    operands = {
        role: dataclasses.replace(x, index=places[x.space, x.index]) if (x.space, x.index) in places else x
        for role, x in step.operands.items()
    }
    return dataclasses.replace(step, operands=operands)


def read_tensor(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Its elements. A small tensor in a weight file is read plainly: onnx_ir reads no file that has hard links."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    with open(Path(tensor.base_dir) / tensor.location, "rb") as file:
        file.seek(tensor.offset or 0)
        numbers = np.frombuffer(file.read(tensor.nbytes), tensor.dtype.numpy())
    return numbers.reshape(tuple(int(axis) for axis in tensor.shape.numpy()))
