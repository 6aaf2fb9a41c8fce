"""What does a kernel template declare, so that variants can be built and called without knowing which one it is?"""

from __future__ import annotations

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
    TemplateCall,
)

AxisValue = bool | int | str
Axes = Mapping[str, AxisValue]
Grid = tuple[Expression, Expression, Expression]

TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32", "int64": "i64"}
DTYPES = ("float16", "bfloat16", "float32")


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
class Parameter:
    """One parameter of the kernel, in order. `source` is what a launch passes: the address of the operand with this
    role, the address of the parameter block's field, or the value of the attribute. `dtype` is an element type, or the
    axis that names it. `when` names the axis without which the kernel is built without the parameter, and gets None for
    it: an operand that may be absent."""

    name: str
    source: Literal["operand", "field", "attribute"]
    dtype: str
    when: str | None = None

    def is_present(self, axes: Axes) -> bool:
        return self.when is None or axes[self.when] is True

    def triton_type(self, axes: Axes) -> str:
        dtype = TRITON_TYPES[str(axes.get(self.dtype, self.dtype))]
        return dtype if self.source == "attribute" else f"*{dtype}"

    def kind(self, axes: Axes) -> Literal["pointer", "int32", "int64", "float32"]:
        """What the launch ABI calls it."""
        if self.source != "attribute":
            return "pointer"
        match str(axes.get(self.dtype, self.dtype)):
            case "int32" | "int64" | "float32" as kind:
                return kind
            case other:
                raise AssertionError(f"an attribute cannot be passed as {other}")


@dataclass(frozen=True)
class Template:
    """`function` is an ordinary Triton function: `parameters` in order, then its constexpr arguments, which `constants`
    computes from the axes. The axis `warps` sets the threads; `pdl`, where there is one, says that the function waits
    for its predecessor (and needs sm_90). `grid` is written over the letters of the op's axes. An op may have several
    templates: the name of one is the name of its file."""

    op: str
    function: Any
    parameters: tuple[Parameter, ...]
    axes: Mapping[str, Whole | OneOf]
    constants: Callable[[Axes], Mapping[str, AxisValue]]
    grid: Callable[[Mapping[str, Expression], Axes], Grid]

    def check(self, axes: Axes) -> None:
        """Raises CompileError for an axis that is missing, unknown, or outside its legal values."""
        place = f"template {self.op}"
        if axes.keys() != self.axes.keys():
            raise CompileError(place, f"expected {sorted(self.axes)}, found {sorted(axes)}", field="axes")
        for name, legal in self.axes.items():
            if not legal.allows(axes[name]):
                raise CompileError(place, f"expected {legal}, found {axes[name]!r}", field=f"axis {name}")

    def present(self, axes: Axes) -> tuple[Parameter, ...]:
        """The parameters that the kernel has when it is built with these axes."""
        return tuple(parameter for parameter in self.parameters if parameter.is_present(axes))

    def call(
        self, variant: int, axes: Axes, operands: tuple[Operand, ...], letters: Mapping[str, Expression]
    ) -> TemplateCall:
        """How a launch with these operands calls this template, built with `axes` as `plan.variants[variant]`."""
        roles = [operand.role for operand in operands]
        arguments = tuple(_argument(parameter, roles) for parameter in self.present(axes))
        return TemplateCall(variant, self.grid(letters, axes), arguments)


def blocks(count: Expression, block: int) -> Expression:
    """How many blocks cover `count`."""
    return -(-count // block) if isinstance(count, int) else Binary("ceil_div", count, block)


def _argument(parameter: Parameter, roles: list[str]) -> Argument:
    match parameter.source:
        case "operand":
            return OperandArgument(roles.index(parameter.name))
        case "field":
            return ParameterArgument(parameter.name)
        case "attribute":
            return AttributeArgument(parameter.name)
