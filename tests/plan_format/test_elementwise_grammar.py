"""Does an elementwise expression say what it says, and nothing else, however it is spelt?"""

from __future__ import annotations

import math
import time

import pytest

from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import (
    FUNCTIONS,
    KINDS,
    MAX_DEPTH,
    Call,
    Number,
    Operand,
    number,
    operands_of,
    parse,
    type_of,
)

FLOAT, HALF, INT, BOOL = "float32", "float16", "int64", "bool"
TYPES: tuple[DType, ...] = ("float32", "int64", "bool")
"""Of x0, x1, x2."""
PATIENCE = 1.0


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("x0", FLOAT),
        ("x1", INT),
        ("mul(x0, sigmoid(x0))", FLOAT),
        ("  mul ( x0 , sigmoid( x0 ) )", FLOAT),
        ("where(lt(x0, float32:0), float32:0, x0)", FLOAT),
        ("where(x2, x1, int64:-5)", INT),
        ("cast.float16(x1)", HALF),
        ("cast.bool(x0)", BOOL),
        ("eq(x2, x2)", BOOL),
        ("isnan(x0)", BOOL),
        ("not(xor(x2, gt(x1, int64:3)))", BOOL),
        ("shl(x1, int64:2)", INT),
        ("float32:nan", FLOAT),
        ("max(x0, float32:-inf)", FLOAT),
        ("float32:1e-05", FLOAT),
        ("float32:-1.5e+20", FLOAT),
        ("bool:1", BOOL),
    ],
)
def test_its_type_follows(text: str, dtype: str) -> None:
    assert type_of(parse(text, TYPES), TYPES) == dtype


def test_it_is_a_tree() -> None:
    wanted = Call("add", (Operand(0), Call("cast.float32", (Operand(1),), "float32")), "float32")
    assert parse("add(x0, cast.float32(x1))", TYPES) == wanted
    assert parse("float32:2", ()) == Number("float32", 2.0)
    assert parse("int64:-9223372036854775808", ()) == Number("int64", -(2**63))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected more of the expression, found its end"),
        ("add(x0", "expected more of the expression, found its end"),
        ("add(x0, x0", "expected more of the expression, found its end"),
        ("add(x0 x0)", r"expected '\)', found 'x0'"),
        ("x0)", r"expected the end of the expression, found '\)'"),
        ("x0 x0", "expected the end of the expression, found 'x0'"),
        ("x3", "expected an operand below 3, found 'x3'"),
        ("x0001", r"expected '\('|expected more"),
        ("exp", "expected more of the expression"),
        ("exp()", r"expected '\('|expected a function|expected more"),
        ("()", r"expected '\('|expected a function|found"),
        ("import(x0)", "expected a function of elements, found 'import'"),
        ("__class__(x0)", "expected a function of elements, found '__class__'"),
        ("exp.x(x0)", "expected a function of elements, found 'exp.x'"),
        ("add(x0)", r"expected 2 of one number type for add, found \['float32'\]"),
        ("add(x0, x1)", "expected 2 of one number type for add"),
        ("add(x2, x2)", "expected 2 of one number type for add"),
        ("exp(x1)", "expected 1 of one float type for exp"),
        ("bitand(x0, x0)", "expected 2 of one integer type for bitand"),
        ("not(x0)", "expected 1 of one bool type for not"),
        ("where(x0, x0, x0)", r"expected where\(bool, a, a\), found where\(float32, float32, float32\)"),
        ("where(x2, x0, x1)", r"expected where\(bool, a, a\)"),
        ("where(x2, x0)", r"expected where\(bool, a, a\)"),
        ("cast.text(x0)", r"expected cast\.TYPE of one expression, found 'cast\.text' of 1"),
        ("cast.float32(x0, x0)", r"expected cast\.TYPE of one expression"),
        ("cast.(x0)", r"expected cast\.TYPE of one expression"),
        ("text:1", "expected TYPE:NUMBER, found 'text:1'"),
        ("float32:1.2.3", "expected TYPE:NUMBER"),
        ("float32:0x10", "expected"),
        ("float32:1_000", "expected TYPE:NUMBER"),
        ("int64:1.5", "expected a whole number for int64, found '1.5'"),
        ("int64:nan", "expected a whole number for int64"),
        ("int64:" + "9" * 21, "expected a whole number for int64"),
        ("x0; x1", "expected an expression of up to 256 parts, found '; x1'"),
        ("x0 + x1", r"expected an expression of up to 256 parts, found ' \+ x1'"),
        ("\N{GREEK SMALL LETTER ALPHA}", "expected an expression of up to 256 parts"),
        ("x\N{SUPERSCRIPT TWO}", "expected an expression of up to 256 parts|expected '"),
        ("x\N{ARABIC-INDIC DIGIT ONE}", "expected an expression of up to 256 parts|expected '"),
        ("float32:\N{ARABIC-INDIC DIGIT ONE}", "expected"),
        ("neg(\nx0)", "expected an expression of up to 256 parts"),
        ("neg(\x1bx0)", r"expected an expression of up to 256 parts, found '\\x1bx0\)'"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text, TYPES)


def nested(levels: int) -> str:
    return "exp(" * (levels - 1) + "x0" + ")" * (levels - 1)


def test_it_is_as_deep_as_its_limit() -> None:
    assert type_of(parse(nested(MAX_DEPTH), TYPES), TYPES) == FLOAT
    with pytest.raises(ValueError, match=f"at most {MAX_DEPTH} deep, found a deeper one"):
        parse(nested(MAX_DEPTH + 1), TYPES)


@pytest.mark.parametrize(
    "text",
    [
        nested(300),
        "exp(" * 1_000_000,
        "(" * 1_000_000,
        "x0," * 1_000_000,
        "x" * 1_000_000,
        "x0" + " " * 1_000_000 + "x0",
        " " * 1_000_000,
        "float32:" + "1" * 1_000_000,
        "float32:" + "1." * 500_000,
        "float32:1e" + "9" * 1_000_000,
        "cast." * 200_000 + "(x0)",
        "a.a." * 250_000 + "(x0)",
        "add(x0, " * 60 + "x0" + ", x0)" * 60 + ")",
        "\0" * 1_000_000,
    ],
    ids=lambda text: f"{text[:9]!r}x{len(text)}",
)
def test_hostile_text_is_refused_at_once(text: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(ValueError, match="expected") as refused:
        parse(text, TYPES)
    assert time.perf_counter() - begun < PATIENCE
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_takes_the_types_of_its_kind_and_no_others(name: str) -> None:
    function = FUNCTIONS[name]
    text = f"{name}({', '.join(['x0'] * function.operands)})"
    for dtype in KINDS["any"]:
        if dtype in KINDS[function.kind]:
            assert type_of(parse(text, (dtype,)), (dtype,)) == (function.gives or dtype)  # type: ignore[arg-type] (one of the types)
        else:
            with pytest.raises(ValueError, match=f"type for {name}"):
                parse(text, (dtype,))  # type: ignore[arg-type] (one of the types)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, 1e-30, -3.4e38, math.inf, -math.inf])
def test_a_number_is_spelt_so_that_it_comes_back(value: float) -> None:
    found = parse(number("float32", value), ())
    assert isinstance(found, Number)
    assert (found.value, math.copysign(1, found.value)) == (value, math.copysign(1, value))


def test_other_numbers_are_spelt_too() -> None:
    nan = parse(number("float64", math.nan), ())
    assert isinstance(nan, Number)
    assert math.isnan(nan.value)
    assert [number("int64", -5), number("bool", True), number("uint8", 255.0)] == ["int64:-5", "bool:1", "uint8:255"]


def test_the_operands_are_named_once_and_rising() -> None:
    assert operands_of("where(x2, add(x10, x0), mul(x0, float32:2))") == [0, 2, 10]
    assert operands_of("float32:1") == []
