"""What does an elementwise expression become inside of a kernel?

The plan's small typed expression is read while the kernel is compiled, and each of its functions becomes Triton's. Half
precision is computed in float32 and rounded where it is stored, or where the expression casts to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton.language as tl
from triton.language.extra.cuda import libdevice

from hjgc.plan_format.elementwise import Call, Node, Number, Operand, parse

COMPUTED: dict[str, Any] = {
    "float32": tl.float32, "float16": tl.float32, "bfloat16": tl.float32, "float64": tl.float64, "bool": tl.int1,
    "int64": tl.int64, "int32": tl.int32, "int16": tl.int16, "int8": tl.int8,
    "uint64": tl.uint64, "uint32": tl.uint32, "uint16": tl.uint16, "uint8": tl.uint8,
}  # fmt: skip
"""What an element of each type is computed in."""
STORED: dict[str, Any] = COMPUTED | {"float16": tl.float16, "bfloat16": tl.bfloat16}
FLOATING = ("float32", "float16", "bfloat16", "float64")
DIRECT = ("exp", "log", "rsqrt", "sin", "cos", "erf", "floor", "ceil", "abs")
"""Functions of Triton's, looked up when they are needed: its interpreter puts others in their place."""
LIBRARY = {"tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh",
           "tanh": "tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "round": "rint",
           "trunc": "trunc"}  # fmt: skip
"""Functions of NVIDIA's device library."""
OPERATORS = {
    "add": "__add__", "sub": "__sub__", "mul": "__mul__", "lt": "__lt__", "le": "__le__", "gt": "__gt__",
    "ge": "__ge__", "eq": "__eq__", "and": "__and__", "or": "__or__", "xor": "__xor__", "not": "__invert__",
    "bitand": "__and__", "bitor": "__or__", "bitxor": "__xor__", "bitnot": "__invert__", "shl": "__lshift__",
    "shr": "__rshift__", "neg": "__neg__",
}  # fmt: skip


def refuse_formula(text: str, types: Sequence[str]) -> str | None:
    """Why no kernel can be made of an expression over operands of these types; None if one can."""
    try:
        node = parse(text, tuple(types))  # type: ignore[arg-type] (checked by `parse`)
    except ValueError as error:
        return str(error)
    return _refuse(node)


def _refuse(node: Node) -> str | None:
    if not isinstance(node, Call):
        return None
    if node.function == "pow" and node.dtype not in FLOATING:
        return f"no kernel computes powers of {node.dtype}"
    return next(filter(None, map(_refuse, node.arguments)), None)


def formula(TEXT: Any, TYPES: Any, values: Any, _semantic: Any = None) -> Any:
    """The expression over `values`, whose types are named in TYPES between commas. To be called from kernels."""
    kernel = {} if _semantic is None else {"_semantic": _semantic}
    types = tuple(str(getattr(TYPES, "value", TYPES)).split(","))
    node = parse(str(getattr(TEXT, "value", TEXT)), types)  # type: ignore[arg-type] (checked by `parse`)
    return _Builder(values, types, kernel)(node)


formula.__triton_builtin__ = True  # type: ignore[attr-defined] (how Triton knows what runs while it compiles)


class _Builder:
    """Makes the value of each node. Under Triton's interpreter, which wants no semantic, the same calls compute."""

    def __init__(self, values: Any, types: Sequence[str], kernel: dict[str, Any]) -> None:
        self._values, self._types, self._kernel = values, types, kernel

    def __call__(self, node: Node) -> Any:
        match node:
            case Operand():
                return self._to(self._values[node.index], COMPUTED[self._types[node.index]])
            case Number():
                return self._number(node.value, COMPUTED[node.dtype])
            case Call():
                return self._call(node)

    def _call(self, node: Call) -> Any:
        arguments = [self(argument) for argument in node.arguments]
        if node.function.startswith("cast."):
            return self._cast(arguments[0], node.dtype)
        if node.function == "where":
            return tl.where(*arguments, **self._kernel)
        if node.function in DIRECT:
            return getattr(tl, node.function)(arguments[0], **self._kernel)
        if node.function in LIBRARY:
            return getattr(libdevice, LIBRARY[node.function])(arguments[0], **self._kernel)
        if node.function in OPERATORS:
            return self._operator(OPERATORS[node.function], *arguments)
        return getattr(self, f"_{node.function}")(*arguments, floating=node.dtype in FLOATING)

    def _operator(self, name: str, first: Any, *rest: Any) -> Any:
        return getattr(first, name)(*rest, **self._kernel)

    def _to(self, value: Any, dtype: Any) -> Any:
        return value if value.dtype == dtype else value.to(dtype, **self._kernel)

    def _number(self, value: float, dtype: Any) -> Any:
        return tl.full((), bool(value) if dtype == tl.int1 else value, dtype, **self._kernel)

    def _cast(self, value: Any, dtype: str) -> Any:
        if dtype == "bool":
            return self._operator("__ne__", value, self._number(0, value.dtype))
        return self._to(self._to(value, STORED[dtype]), COMPUTED[dtype])

    def _div(self, a: Any, b: Any, *, floating: bool) -> Any:
        """Rounded as the standard has it: Triton's own division in float32 is not, which moves what is rounded next."""
        if floating and a.dtype == tl.float32:
            return tl.div_rn(a, b, **self._kernel)
        return self._operator("__truediv__" if floating else "__floordiv__", a, b)

    def _sqrt(self, a: Any, *, floating: bool) -> Any:
        del floating
        return (tl.sqrt_rn if a.dtype == tl.float32 else tl.sqrt)(a, **self._kernel)

    def _reciprocal(self, a: Any, *, floating: bool) -> Any:
        return self._div(self._number(1, a.dtype), a, floating=floating)

    def _mod(self, a: Any, b: Any, *, floating: bool) -> Any:
        """With the sign of the divisor."""
        rest = self._fmod(a, b, floating=floating)
        zero = self._number(0, a.dtype)
        signs = self._operator("__xor__", self._operator("__lt__", rest, zero), self._operator("__lt__", b, zero))
        wrong = self._operator("__and__", self._operator("__ne__", rest, zero), signs)
        return tl.where(wrong, self._operator("__add__", rest, b), rest, **self._kernel)

    def _fmod(self, a: Any, b: Any, *, floating: bool) -> Any:
        return libdevice.fmod(a, b, **self._kernel) if floating else self._operator("__mod__", a, b)

    def _pow(self, a: Any, b: Any, *, floating: bool) -> Any:
        del floating
        return libdevice.pow(a, b, **self._kernel)

    def _min(self, a: Any, b: Any, *, floating: bool) -> Any:
        return self._extreme("minimum", a, b, floating)

    def _max(self, a: Any, b: Any, *, floating: bool) -> Any:
        return self._extreme("maximum", a, b, floating)

    def _extreme(self, function: str, a: Any, b: Any, floating: bool) -> Any:
        """What is no number stays so."""
        nan = {"propagate_nan": tl.PropagateNan.ALL} if floating else {}
        return getattr(tl, function)(a, b, **nan, **self._kernel)

    def _sigmoid(self, a: Any, *, floating: bool) -> Any:
        down = tl.exp(self._operator("__neg__", a), **self._kernel)
        return self._reciprocal(self._operator("__add__", down, self._number(1, a.dtype)), floating=floating)

    def _softplus(self, a: Any, *, floating: bool) -> Any:
        """max(a, 0) + log(1 + exp(-|a|)): no overflow."""
        del floating
        down = tl.exp(self._operator("__neg__", tl.abs(a, **self._kernel)), **self._kernel)
        rest = tl.log(self._operator("__add__", down, self._number(1, a.dtype)), **self._kernel)
        return self._operator("__add__", self._extreme("maximum", a, self._number(0, a.dtype), True), rest)

    def _sign(self, a: Any, *, floating: bool) -> Any:
        del floating
        zero, one = self._number(0, a.dtype), self._number(1, a.dtype)
        under = tl.where(self._operator("__lt__", a, zero), self._number(-1, a.dtype), a, **self._kernel)
        return tl.where(self._operator("__gt__", a, zero), one, under, **self._kernel)

    def _isnan(self, a: Any, *, floating: bool) -> Any:
        del floating
        return self._operator("__ne__", a, a)

    def _isinf(self, a: Any, *, floating: bool) -> Any:
        del floating
        return self._operator("__eq__", tl.abs(a, **self._kernel), self._number(math.inf, a.dtype))
