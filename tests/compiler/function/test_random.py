"""Does an island say that it draws random numbers, wherever inside of it?"""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from hjgc.compiler.function.islands import MOST_REASONS, causes
from hjgc.compiler.function.lowering import NotNative, unknown_operator
from hjgc.plan_format.reasons import ReasonCode
from hjgc.plan_format.structs import DynamicSegment
from hjgc.tools.onnx_backend import PreparedModel

DRAWN = {
    "branch": (
        """f (float[N,4] x, bool go) => (y) {
            a = Exp(x)
            [outer] y = If (go) <then_branch = t () => (b) { [inner] r = RandomNormalLike(a) b = Add(a, r) },
                                 else_branch = e () => (b) { b = Identity(a) }>
        }""",
        ("outer", "inner"),
        "RandomNormalLike",
    ),
    "branch in a loop": (
        """f (float[N,4] x, bool go) => (y) {
            a = Exp(x)
            [outer] y = Loop (two, , a) <body = body (int64 i, bool on, float[N,4] s) => (on_out, s_out) {
                on_out = Identity(on)
                [between] s_out = If (go) <then_branch = t () => (b) { [inner] b = Bernoulli(s) },
                                           else_branch = e () => (b) { b = Identity(s) }>
            }>
        }""",
        ("outer", "inner"),
        "Bernoulli",
    ),
    "training": (
        """f (float[N,4] x, bool go) => (y) {
            [outer] y = If (go) <then_branch = t () => (b) { [inner] b = Dropout(x, half, go) },
                                 else_branch = e () => (b) { b = Identity(x) }>
        }""",
        ("outer", "inner"),
        "Dropout",
    ),
    "a function's branch": (
        """f (float[N,4] x, bool go) => (y) { y = local.noisy(x, go) }
        <domain: "local", opset_import: ["" : 21]>
        noisy (x, go) => (y) {
            [outer] y = If (go) <then_branch = t () => (b) { [inner] b = Multinomial(x) },
                                 else_branch = e () => (b) { b = Cast <to = 6> (x) }>
        }""",
        ("outer", "inner"),
        "Multinomial",
    ),
    "a function": (
        """f (float[N,4] x, bool go) => (y) { y = local.noisy(x) }
        <domain: "local", opset_import: ["" : 21]>
        noisy (x) => (y) { [inner] y = RandomUniformLike(x) }""",
        ("inner",),
        "RandomUniformLike",
    ),
}  # fmt: skip


def reasons(text: str) -> dict[str, tuple[str, ...]]:
    """The island's chains by code."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21, "local" : 1]>\n' + text)
    constants = {"two": np.array(2), "half": np.array(0.5, np.float32), "no": np.array(False)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    prepared = PreparedModel(model, {"N": (1, 8)})
    try:
        segments = prepared.plan.phases[0].schedules[0].segments
        found = [reason for part in segments if isinstance(part, DynamicSegment) for reason in part.reasons]
        return {str(reason.code): reason.chain for reason in found}
    finally:
        prepared.close()


@pytest.mark.parametrize("case", DRAWN)
def test_what_draws_inside_of_a_node_is_said_and_named(case: str) -> None:
    text, nodes, op = DRAWN[case]
    found = reasons(text)
    steps = [f"ONNX node {name}" for name in nodes]
    assert found["RANDOM"] == ("island.0", *steps, f"since ai.onnx.{op} draws random numbers")
    assert ("HOST_CONTROL_FLOW" in found) == (len(nodes) > 1)


def test_a_dropout_that_does_not_train_draws_nothing() -> None:
    assert set(reasons(DRAWN["training"][0].replace("half, go", "half, no"))) == {"HOST_CONTROL_FLOW"}


def test_that_an_island_draws_is_said_before_all_else() -> None:
    """It keeps so many of its reasons and no more."""
    many = [ir.node(f"Foreign{i}", [], domain="com.acme") for i in range(MOST_REASONS)]
    why = {node: NotNative(ReasonCode.HOST_TYPE, "it is odd") for node in many}
    noise = ir.node("RandomNormal", [], name="noise")
    first, *rest = causes({**why, noise: unknown_operator(noise)})
    assert first == (
        ReasonCode.RANDOM, ("ONNX node noise", "since ai.onnx.RandomNormal draws random numbers"),
    )  # fmt: skip
    assert len(rest) == MOST_REASONS - 1


DRAWING = ("RandomUniformLike", "Bernoulli", "If")


def drawing(op: str, name: str, source: str) -> str:
    if op == "If":
        inside = f"then_branch = t () => (o) {{ o = RandomUniformLike({source}) }}"
        return f"{name} = If (yes) <{inside}, else_branch = e () => (o) {{ o = Identity({source}) }}>"
    return f"{name} = {op}({source})"


@pytest.mark.parametrize(("first", "second"), sorted({*product(DRAWING, repeat=2)} - {("If", "If")}))
def test_islands_do_not_draw_what_others_drew(first: str, second: str) -> None:
    """A Bernoulli of a half draws such numbers too and says which of them are small. (What branches draw, ONNX Runtime
    seeds by places in these, whatever the whole model is.)"""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        f (float[4000] halves, bool yes) => (y, z) {{
            {drawing(first, "a", "halves")} y = Neg(a) none = Sub(y, y) again = Sub(halves, none)
            {drawing(second, "b", "again")} z = Neg(b)
        }}"""
    )
    prepared = PreparedModel(model)
    try:
        assert [island.nodes for island in prepared.plan.islands] == [("node",), ("node_4",)]
        found = prepared.run([np.full(4000, 0.5, np.float32), np.array(True)])
    finally:
        prepared.close()
    assert abs(np.corrcoef(*found)[0, 1]) < 0.1
