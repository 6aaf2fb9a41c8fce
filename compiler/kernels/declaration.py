"""What does a kernel template declare, so that variants can be built and called without knowing which one it is?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hjgc.plan_format.errors import CompileError
from hjgc.plan_format.sizes import Binary, Expression
from hjgc.plan_format.structs import (
    Argument,
    AttributeArgument,
    Operand,
    OperandArgument,
    ParameterArgument,
    ParameterKind,
    TemplateCall,
    TensorMapArgument,
    ValueArgument,
)

AxisValue = bool | int | str
Axes = Mapping[str, AxisValue]
Grid = tuple[Expression, Expression, Expression]

TRITON_TYPES = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "bool": "i1",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8",
    "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8",
}  # fmt: skip
DTYPES = ("float16", "bfloat16", "float32")
WORDS = re.compile(r"[A-Za-z0-9_.,:()+\- ]*")
ABSENT = "none"
"""The element type of an operand that a variant is built without."""


@dataclass(frozen=True)
class Whole:
    """An axis of whole numbers from `low` to `high`."""

    low: int
    high: int

    def allows(self, value: AxisValue) -> bool:
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class OneOf:
    """An axis of a few values."""

    values: tuple[AxisValue, ...]

    def allows(self, value: AxisValue) -> bool:
        return any(type(value) is type(legal) and value == legal for legal in self.values)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Text:
    """An axis of words for a generator installed with hjgc, as the template's `refuse` reads them: an expression of
    `plan_format.elementwise`, or numbers and types between commas."""

    most: int = 4096

    def allows(self, value: AxisValue) -> bool:
        return isinstance(value, str) and len(value) <= self.most and WORDS.fullmatch(value) is not None

    def __str__(self) -> str:
        return f"up to {self.most} letters, digits and signs"


@dataclass(frozen=True)
class TensorMap:
    """How Hopper's copy engine sees an operand (`plan_format.TensorMapArgument`): `sizes` and `box` in elements,
    innermost axis first, `strides` of the outer axes and `swizzle` in bytes."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: Literal[0, 32, 64, 128]


@dataclass(frozen=True)
class Parameter:
    """One parameter of the kernel, in order. `source` is what a launch passes: the address of the operand with this
    role, a tensor map of it as `map` makes it from the axes, the address of the parameter block's field, the value of
    the attribute, or that of the size. `dtype` is an element type, or the axis that names it. `when` names the axis
    that is False, or ABSENT, where the kernel is built without the parameter and gets None for it: an operand that may
    be absent. Or that axis counts parameters of a kind, and those at a `place` from there on are left out."""

    name: str
    source: Literal["operand", "tensor_map", "field", "attribute", "size"]
    dtype: str
    when: str | None = None
    map: Callable[[Axes], TensorMap] | None = None
    place: int = 0

    def is_present(self, axes: Axes) -> bool:
        said = True if self.when is None else axes[self.when]
        return self.place < said if type(said) is int else said not in (False, ABSENT)

    def triton_type(self, axes: Axes) -> str:
        dtype = TRITON_TYPES[str(axes.get(self.dtype, self.dtype))]
        return dtype if self.source in ("attribute", "size") else f"*{dtype}"

    def kind(self, axes: Axes) -> ParameterKind:
        """What the launch ABI calls it."""
        if self.source == "tensor_map":
            return "tensor_map"
        if self.source not in ("attribute", "size"):
            return "pointer"
        match str(axes.get(self.dtype, self.dtype)):
            case "int32" | "int64" | "float32" as kind:
                return kind
            case other:
                raise AssertionError(f"an attribute cannot be passed as {other}")


@dataclass(frozen=True)
class CudaFunction:
    """A kernel written in CUDA C++, for sm_90 alone: the `text` that defines `entry`, without headers; the threads of a
    block; its dynamic shared memory in bytes."""

    entry: str
    text: Callable[[Axes], str]
    threads: Callable[[Axes], int]
    shared_bytes: Callable[[Axes], int]


@dataclass(frozen=True)
class Template:
    """`function` is an ordinary Triton function: `parameters` in order, then its constexpr arguments, which `constants`
    computes from the axes. The axis `warps` sets the threads. Or it is a CudaFunction, whose text the constants precede
    as constants of C++. `pdl`, where there is one, says that the function waits for its predecessor (and needs sm_90).
    `grid` is written over the letters of the op's axes. `refuse` says why axes that are legal one by one do not go
    together. An op may have several templates: the name of one is the name of its file."""

    op: str
    function: Any
    parameters: tuple[Parameter, ...]
    axes: Mapping[str, Whole | OneOf | Text]
    constants: Callable[[Axes], Mapping[str, AxisValue]]
    grid: Callable[[Mapping[str, Expression], Axes], Grid]
    refuse: Callable[[Axes], str | None] = lambda axes: None

    def check(self, axes: Axes) -> None:
        """Raises CompileError for an axis that is missing, unknown, or outside its legal values, or for axes that do
        not go together."""
        place = f"template {self.op}"
        if axes.keys() != self.axes.keys():
            raise CompileError(place, f"expected {sorted(self.axes)}, found {sorted(axes)}", field="axes")
        for name, legal in self.axes.items():
            if not legal.allows(axes[name]):
                raise CompileError(place, f"expected {legal}, found {axes[name]!r}", field=f"axis {name}")
        reason = self.refuse(axes)
        if reason is not None:
            raise CompileError(place, reason, field="axes")

    def present(self, axes: Axes) -> tuple[Parameter, ...]:
        """The parameters that the kernel has when it is built with these axes."""
        return tuple(parameter for parameter in self.parameters if parameter.is_present(axes))

    def call(
        self, variant: int, axes: Axes, operands: tuple[Operand, ...], letters: Mapping[str, Expression]
    ) -> TemplateCall:
        """How a launch with these operands calls this template, built with `axes` as `plan.variants[variant]`.
        `letters` are the op's sizes, or, of a tensor op, those that its kernel takes and its grid is written over."""
        roles = [operand.role for operand in operands]
        arguments = tuple(_argument(parameter, roles, axes, letters) for parameter in self.present(axes))
        return TemplateCall(variant, self.grid(letters, axes), arguments)


def blocks(count: Expression, block: int) -> Expression:
    """How many blocks cover `count`."""
    return -(-count // block) if isinstance(count, int) else Binary("ceil_div", count, block)


def _argument(parameter: Parameter, roles: list[str], axes: Axes, letters: Mapping[str, Expression]) -> Argument:
    match parameter.source:
        case "operand":
            return OperandArgument(roles.index(parameter.name))
        case "tensor_map":
            assert parameter.map is not None, f"parameter {parameter.name} is a tensor map without a map"
            made = parameter.map(axes)
            return TensorMapArgument(roles.index(parameter.name), made.sizes, made.strides, made.box, made.swizzle)
        case "field":
            return ParameterArgument(parameter.name)
        case "attribute":
            return AttributeArgument(parameter.name)
        case "size":
            return ValueArgument(letters[parameter.name])
