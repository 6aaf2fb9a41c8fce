"""Which ONNX nodes compute each element from those at the same place? Each becomes one expression."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from hjgc.compiler.function.lowering import Lowering, draws, lowers
from hjgc.compiler.program import Tensor
from hjgc.compiler.tables import ALL_DTYPES
from hjgc.plan_format.dtypes import DType
from hjgc.plan_format.elementwise import FLOATS, SIGNED, UNSIGNED, number
from hjgc.plan_format.ops.declaration import TensorType
from hjgc.plan_format.ops.shapes import broadcast
from hjgc.plan_format.reasons import ReasonCode

UNARY = {
    "Abs": "abs", "Neg": "neg", "Sign": "sign", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal",
    "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh",
    "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Erf": "erf",
    "Sigmoid": "sigmoid", "Softplus": "softplus", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Not": "not",
    "BitwiseNot": "bitnot", "IsNaN": "isnan",
}  # fmt: skip
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or", "Xor": "xor", "Equal": "eq",
    "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge", "BitwiseAnd": "bitand",
    "BitwiseOr": "bitor", "BitwiseXor": "bitxor",
}  # fmt: skip
ACTIVATIONS = (
    "Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Softsign", "Mish",
    "Swish", "Gelu", "Shrink",
)  # fmt: skip


@lowers(*UNARY)
def _unary(node: Lowering) -> None:
    x = node.x(0)
    if node.node.op_type in ("Abs", "Floor", "Ceil", "Round") and x.dtype in UNSIGNED:
        return node.give(node.elementwise("x0", x))
    node.give(node.elementwise(f"{UNARY[node.node.op_type]}(x0)", x))


@lowers(*BINARY)
def _binary(node: Lowering) -> None:
    node.give(node.elementwise(f"{BINARY[node.node.op_type]}(x0, x1)", node.x(0), _second(node)))


def _second(node: Lowering) -> Tensor:
    """The second operand, so that its axes stand under those of the first that it goes along. Before opset 7 it was the
    `axis` that said which those are; without one, the last."""
    x, y = node.x(0), node.x(1)
    if node.version >= 7 or not node.integer("broadcast", 0):
        return y
    last = len(x.shape) - len(y.shape)
    axis = node.integer("axis", last)
    behind = last - (axis if axis >= 0 else axis + len(x.shape))
    if behind < 0:
        raise node.refuse("its second operand has axes behind those of the first")
    return node.view(y, (*y.shape, *[1] * behind))


@lowers("Min", "Max", "Sum", "Mean")
def _many(node: Lowering) -> None:
    word = {"Min": "min", "Max": "max"}.get(node.node.op_type, "add")
    inputs = [node.x(i) for i in range(node.count)]
    text = "x0"
    for i in range(1, len(inputs)):
        text = f"{word}({text}, x{i})"
    if node.node.op_type == "Mean":
        text = f"div({text}, {node.scalar(inputs[0].dtype, len(inputs))})"
    node.give(node.elementwise(text, *inputs))


@lowers("Identity", "Dropout")
def _same(node: Lowering) -> None:
    if node.node.op_type == "Dropout":
        _check_inference(node)
    x = node.x(0)
    node.give(x)
    if node.wants(1):
        node.give(node.elementwise("eq(x0, x0)", _zeros_like(node, x)), 1)


def _zeros_like(node: Lowering, x: Tensor) -> Tensor:
    """Whatever is in x, numbers that equal themselves."""
    return node.elementwise("cast.int32(eq(x0, x0))", x)


def _check_inference(node: Lowering) -> None:
    if node.version < 7 and not node.integer("is_test", 0):
        raise node.refuse("it trains", ReasonCode.RANDOM)
    if draws(node.node):
        raise node.refuse("it may train", ReasonCode.RANDOM)


@lowers("Where")
def _where(node: Lowering) -> None:
    node.give(node.elementwise("where(x0, x1, x2)", node.x(0), node.x(1), node.x(2)))


@lowers("Cast", "CastLike")
def _cast(node: Lowering) -> None:
    x = node.x(0)
    if node.node.op_type == "Cast":
        kind = ir.DataType(node.integer("to", 0))
        if kind not in ALL_DTYPES:
            raise node.refuse(f"no buffer holds {kind.name.lower()}", ReasonCode.HOST_TYPE)
        dtype = ALL_DTYPES[kind]
    else:
        dtype = node.x(1).dtype
    if x.dtype in FLOATS and dtype in UNSIGNED:
        raise node.refuse(f"{x.dtype} to {dtype}: what lies outside differs from machine to machine")
    node.give(node.elementwise(f"cast.{dtype}(x0)", x))


@lowers("Pow")
def _pow(node: Lowering) -> None:
    x, exponent = node.x(0), _second(node)
    if x.dtype not in FLOATS and exponent.dtype in FLOATS:
        node.give(node.elementwise(f"cast.{x.dtype}(pow(cast.float64(x0), cast.float64(x1)))", x, exponent))
    else:
        node.give(node.elementwise(f"pow(x0, cast.{x.dtype}(x1))", x, exponent))


@lowers("Mod")
def _mod(node: Lowering) -> None:
    word = "fmod" if node.integer("fmod", 0) else "mod"
    node.give(node.elementwise(f"{word}(x0, x1)", node.x(0), node.x(1)))


@lowers("BitShift")
def _bit_shift(node: Lowering) -> None:
    word = "shl" if node.text("direction", "LEFT") == "LEFT" else "shr"
    node.give(node.elementwise(f"{word}(x0, x1)", node.x(0), node.x(1)))


@lowers("IsInf")
def _is_inf(node: Lowering) -> None:
    x = node.x(0)
    sides = (node.integer("detect_negative", 1), node.integer("detect_positive", 1))
    zero = node.scalar(x.dtype, 0)
    text = {(1, 1): "isinf(x0)", (1, 0): f"and(isinf(x0), lt(x0, {zero}))", (0, 1): f"and(isinf(x0), gt(x0, {zero}))"}
    node.give(node.elementwise(text.get(sides, "and(isinf(x0), not(isinf(x0)))"), x))


@lowers("Clip")
def _clip(node: Lowering) -> None:
    """No result over the upper bound, whatever the lower one is."""
    x = node.x(0)
    inputs, text = [x], "x0"
    for index, word, attribute in ((1, "max", "min"), (2, "min", "max")):
        if node.has(index):
            inputs.append(node.x(index))
            text = f"{word}({text}, x{len(inputs) - 1})"
        elif attribute in node.node.attributes:
            text = f"{word}({text}, {node.scalar(x.dtype, node.number(attribute, 0))})"
    node.give(node.elementwise(text, *inputs))


def activation(op_type: str, dtype: DType, parameter: Callable[[str, float], float], approximate: str = "none") -> str:
    """The expression of an activation of `x0`. `parameter(name, default)`: what the node says of it."""

    def s(value: float) -> str:
        return number(dtype, value)

    def given(name: str, default: float) -> str:
        return s(parameter(name, default))

    zero, one = s(0), s(1)
    match op_type:
        case "Relu":
            return f"max(x0, {zero})"
        case "LeakyRelu":
            return f"where(lt(x0, {zero}), mul(x0, {given('alpha', 0.01)}), x0)"
        case "ThresholdedRelu":
            return f"where(gt(x0, {given('alpha', 1)}), x0, {zero})"
        case "Elu":
            return f"where(lt(x0, {zero}), mul({given('alpha', 1)}, sub(exp(x0), {one})), x0)"
        case "Selu":
            alpha, gamma = given("alpha", 1.67326319217681884765625), given("gamma", 1.05070102214813232421875)
            return f"mul({gamma}, where(gt(x0, {zero}), x0, mul({alpha}, sub(exp(x0), {one}))))"
        case "Celu":
            alpha = given("alpha", 1)
            low = f"min({zero}, mul({alpha}, sub(exp(div(x0, {alpha})), {one})))"
            return f"add(max(x0, {zero}), {low})"
        case "HardSigmoid":
            line = f"add(mul({given('alpha', 0.2)}, x0), {given('beta', 0.5)})"
            return f"max({zero}, min({one}, {line}))"
        case "HardSwish":
            return f"mul(x0, max({zero}, min({one}, add(mul({s(1 / 6)}, x0), {s(0.5)}))))"
        case "Softsign":
            return f"div(x0, add({one}, abs(x0)))"
        case "Mish":
            return "mul(x0, tanh(softplus(x0)))"
        case "Swish":
            return f"mul(x0, sigmoid(mul(x0, {given('alpha', 1)})))"
        case "Gelu" if approximate == "tanh":
            cube = f"mul({s(0.044715)}, mul(x0, mul(x0, x0)))"
            inner = f"tanh(mul({s(math.sqrt(2 / math.pi))}, add(x0, {cube})))"
            return f"mul(mul({s(0.5)}, x0), add({one}, {inner}))"
        case "Gelu":
            return f"mul(mul({s(0.5)}, x0), add({one}, erf(mul(x0, {s(math.sqrt(0.5))}))))"
        case _:  # Shrink
            over, under = given("lambd", 0.5), s(-parameter("lambd", 0.5))
            bias = given("bias", 0)
            inside = f"where(gt(x0, {over}), sub(x0, {bias}), {zero})"
            return f"where(lt(x0, {under}), add(x0, {bias}), {inside})"


@lowers(*ACTIVATIONS)
def _activate(node: Lowering) -> None:
    x = node.x(0)
    if x.dtype not in (*FLOATS, *SIGNED):
        raise node.refuse(f"of {x.dtype}")
    approximate = node.text("approximate", "none")
    node.give(node.elementwise(activation(node.node.op_type, x.dtype, node.number, approximate), x))


@lowers("PRelu")
def _prelu(node: Lowering) -> None:
    x, slope = node.x(0), node.x(1)
    if node.version < 7 and len(slope.shape) == 1 and tuple(slope.shape) != (1,):  # one for each channel
        slope = node.view(slope, (*slope.shape, *[1] * (len(x.shape) - 2)))
    zero = node.scalar(x.dtype, 0)
    if broadcast([tuple(x.shape), tuple(slope.shape)]) != tuple(x.shape):
        raise node.refuse("its slope is wider than its operand")
    node.give(node.elementwise(f"where(lt(x0, {zero}), mul(x0, x1), x0)", x, slope))


@lowers("Expand")
def _expand(node: Lowering) -> None:
    x = node.x(0)
    shape = broadcast([tuple(x.shape), node.sizes(1)])
    node.give(node.emit("expand", [x], {}, [TensorType(x.dtype, shape)]))
