"""What does one element of a result depend on: a small typed expression over the elements at the same place?

    expression = xN | TYPE:NUMBER | FUNCTION(expression, ...)

`mul(x0, sigmoid(x0))`, `where(lt(x0, float32:0), float32:0, x0)`, `cast.float16(x1)`. Nothing else can be said, so that
a plan that carries one carries no code: a generator installed with hjgc makes the kernel, and refuses what is not of
this form. Operands of one function have one type, unless its row in FUNCTIONS says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from hjgc.plan_format.dtypes import DType

MAX_PARTS = 256
MAX_DEPTH = 64
MAX_OPERANDS = 16
MAX_WORD = 64
TOKEN = re.compile(r" *([A-Za-z_][\w.]*(?::-?(?:inf|nan|\d[\w.+-]*))?|[(),])", re.ASCII)
LITERAL = re.compile(r"-?(inf|nan|\d+(\.\d+)?(e[+-]?\d+)?)", re.ASCII)

Kind = Literal["float", "signed", "number", "integer", "bool", "any"]
FLOATS = ("float32", "float16", "bfloat16", "float64")
SIGNED = ("int64", "int32", "int16", "int8")
UNSIGNED = ("uint64", "uint32", "uint16", "uint8")
COMPUTED = ("uint32", "uint16", "uint8")
"""Unsigned types that are computed with: of 64 bits they are only moved, compared for being equal and converted."""
KINDS: dict[Kind, tuple[str, ...]] = {
    "float": FLOATS,
    "signed": (*FLOATS, *SIGNED),
    "number": (*FLOATS, *SIGNED, *COMPUTED),
    "integer": (*SIGNED, *COMPUTED),
    "bool": ("bool",),
    "any": (*FLOATS, *SIGNED, *UNSIGNED, "bool"),
}


@dataclass(frozen=True)
class Function:
    """`operands` of them, all of one type of that `kind`; the result has the same type, or is `gives`."""

    operands: int
    kind: Kind
    gives: DType | None = None


def _functions() -> dict[str, Function]:
    unary = (
        "exp log sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
        "erf sigmoid softplus floor ceil round trunc"
    )
    found = {name: Function(1, "float") for name in unary.split()}
    found |= {name: Function(1, "signed") for name in ("neg", "abs", "sign")}
    found |= {name: Function(1, "float", "bool") for name in ("isnan", "isinf")}
    found |= {"not": Function(1, "bool"), "bitnot": Function(1, "integer")}
    found |= {name: Function(2, "number") for name in ("add", "sub", "mul", "div", "min", "max", "pow")}
    found |= {name: Function(2, "number") for name in ("mod", "fmod")}
    found |= {name: Function(2, "number", "bool") for name in ("lt", "le", "gt", "ge")}
    found |= {"eq": Function(2, "any", "bool")}
    found |= {name: Function(2, "bool") for name in ("and", "or", "xor")}
    found |= {name: Function(2, "integer") for name in ("bitand", "bitor", "bitxor", "shl", "shr")}
    return found


FUNCTIONS = _functions()
"""All but `where(bool, a, b)` and `cast.TYPE(a)`."""
DTYPES: dict[str, DType] = {name: name for name in get_args(DType)}


@dataclass(frozen=True)
class Operand:
    """`x0`: the element of that operand."""

    index: int


@dataclass(frozen=True)
class Number:
    """A number of a type."""

    dtype: DType
    value: float | int


@dataclass(frozen=True)
class Call:
    """A function of expressions; `dtype` is the type of what it gives."""

    function: str
    arguments: tuple[Node, ...]
    dtype: DType


Node = Operand | Number | Call


@lru_cache(4096)
def parse(text: str, operands: tuple[DType, ...]) -> Node:
    """The expression over operands of these types, its types found. Raises ValueError with a sentence."""
    parser = _Parser(text, operands)
    node = parser.expression(1)
    parser.expect_end()
    return node


def type_of(node: Node, operands: Sequence[DType]) -> DType:
    return operands[node.index] if isinstance(node, Operand) else node.dtype


def spell(node: Node) -> str:
    """The expression as a plan has it."""
    match node:
        case Operand():
            return f"x{node.index}"
        case Number():
            return number(node.dtype, node.value)
        case Call():
            return f"{node.function}({', '.join(map(spell, node.arguments))})"


def substituted(node: Node, nodes: Sequence[Node]) -> Node:
    """The node with `nodes[i]` in place of operand i."""
    if isinstance(node, Operand):
        return nodes[node.index]
    if isinstance(node, Call):
        return replace(node, arguments=tuple(substituted(argument, nodes) for argument in node.arguments))
    return node


def number(dtype: str, value: float | int | bool) -> str:
    """A number of a type, as an expression spells it."""
    if dtype in FLOATS:
        value = float(value)
        if math.isnan(value):
            return f"{dtype}:nan"
        if math.isinf(value):
            return f"{dtype}:{'-' if value < 0 else ''}inf"
        return f"{dtype}:{value!r}"
    return f"{dtype}:{int(value)}"


def operands_of(text: str) -> list[int]:
    """The operands that an expression names, each once, rising."""
    return sorted({int(found) for found in re.findall(r"\bx(\d+)\b", text)})


class _Parser:
    def __init__(self, text: str, operands: tuple[DType, ...]) -> None:
        self._tokens = list(_tokens(text))
        self._operands, self._next = operands, 0

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise ValueError(f"expected the end of the expression, found {self._tokens[self._next]!r}")

    def expression(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ValueError(f"expected an expression at most {MAX_DEPTH} deep, found a deeper one")
        word = self._take()
        if re.fullmatch(r"x\d{1,3}", word):
            index = int(word[1:])
            if index >= len(self._operands):
                raise ValueError(f"expected an operand below {len(self._operands)}, found {word!r}")
            return Operand(index)
        if ":" in word:
            return _number(word)
        arguments = self._arguments(depth)
        return Call(word, arguments, self._type(word, arguments))

    def _arguments(self, depth: int) -> tuple[Node, ...]:
        self._expect("(")
        found = [self.expression(depth + 1)]
        while self._peek() == ",":
            self._take()
            found.append(self.expression(depth + 1))
        self._expect(")")
        return tuple(found)

    def _type(self, word: str, arguments: tuple[Node, ...]) -> DType:
        types: list[DType] = [type_of(argument, self._operands) for argument in arguments]
        if word.startswith("cast."):
            return _cast(word, types)
        if word == "where":
            if len(types) != 3 or types[0] != "bool" or types[1] != types[2]:
                raise ValueError(f"expected where(bool, a, a), found where({', '.join(types)})")
            return types[1]
        function = FUNCTIONS.get(word)
        if function is None:
            raise ValueError(f"expected a function of elements, found {word[:40]!r}")
        fits = len(types) == function.operands and len(set(types)) == 1 and types[0] in KINDS[function.kind]
        if not fits:
            raise ValueError(f"expected {function.operands} of one {function.kind} type for {word}, found {types}")
        return function.gives or types[0]

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        word = self._peek()
        self._next += 1
        if not word:
            raise ValueError("expected more of the expression, found its end")
        return word

    def _expect(self, word: str) -> None:
        found = self._take()
        if found != word:
            raise ValueError(f"expected {word!r}, found {found[:40]!r}")


def _tokens(text: str) -> Iterator[str]:
    place, count = 0, 0
    while place < len(text):
        match = TOKEN.match(text, place)
        count += 1
        if match is None or count > 4 * MAX_PARTS or len(match.group(1)) > MAX_WORD:
            raise ValueError(f"expected an expression of up to {MAX_PARTS} parts, found {text[place : place + 20]!r}")
        yield match.group(1)
        place = match.end()


def _number(word: str) -> Number:
    dtype, _, digits = word.partition(":")
    if dtype not in DTYPES or LITERAL.fullmatch(digits) is None:
        raise ValueError(f"expected TYPE:NUMBER, found {word[:40]!r}")
    if dtype in FLOATS:
        return Number(DTYPES[dtype], float(digits))
    if not re.fullmatch(r"-?\d{1,20}", digits):
        raise ValueError(f"expected a whole number for {dtype}, found {digits[:40]!r}")
    return Number(DTYPES[dtype], int(digits))


def _cast(word: str, types: Sequence[str]) -> DType:
    dtype = word.removeprefix("cast.")
    if dtype not in DTYPES or len(types) != 1:
        raise ValueError(f"expected cast.TYPE of one expression, found {word[:40]!r} of {len(types)}")
    return DTYPES[dtype]
