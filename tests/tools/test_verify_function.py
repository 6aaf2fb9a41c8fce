"""Does `hjgc verify` compare a plan that is a function with its model, and name what differs?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plan_format.function_plan import write_function_plan
from tests.runtime.functions import write_function
from tests.tools.command_line import CommandLine, write_small_plan

SUM = "sums (float[N,4] x, int64[N] i) => (float[N] y, int64[N] j) { a = Constant <value = int64[1] {1}> () "
EQUAL = SUM + "y = ReduceSum <keepdims = 0> (x, a) j = Neg(i) }"
OTHER_FLOATS = SUM + "z = Exp(x) y = ReduceSum <keepdims = 0> (z, a) j = Neg(i) }"
OTHER_WHOLES = SUM + "y = ReduceSum <keepdims = 0> (x, a) j = Add(i, i) }"
OTHER_SHAPE = SUM.replace("float[N] y", "float[N,1] y") + "y = ReduceSum (x, a) j = Neg(i) }"
OTHER_NAME = SUM.replace("(float[N] y", "(float[N] z") + "z = ReduceSum <keepdims = 0> (x, a) j = Neg(i) }"
HALF = """half (float16[N,32] x) => (float16[N,32] y) { t = Transpose <perm = [1, 0]> (x) p = MatMul(x, t)
s = Softmax(p) y = MatMul(s, x) }"""
Paths = tuple[Path, Path]


@pytest.fixture
def written(tmp_path: Path) -> Paths:
    """A plan of EQUAL, and its model."""
    return written_as(tmp_path, EQUAL)


def written_as(folder: Path, text: str) -> Paths:
    folder.mkdir(exist_ok=True)
    return write_function(folder, text), folder / "model.onnx"


def verified(hjgc: CommandLine, *arguments: object) -> tuple[int, dict[str, Any]]:
    ran = hjgc("verify", *map(str, arguments), "--json")
    return ran.code, json.loads(ran.out)


def test_a_function_is_equal_at_low_middle_and_high_sizes(hjgc: CommandLine, written: Paths) -> None:
    plan, model = written
    code, shown = verified(hjgc, plan, "--against", model)
    assert (code, shown["equal"], shown["notes"], shown["device"]) == (0, True, [], "cpu")
    assert [call["sizes"] for call in shown["calls"]] == [{"N": 1}, {"N": 256}, {"N": 512}]
    for call in shown["calls"]:
        n = call["sizes"]["N"]
        y, j = call["outputs"]
        assert (y["name"], y["dtype"], y["shape"], y["tolerance"], y["differ"]) == ("y", "float32", [n], 1e-4, 0)
        assert (j["name"], j["dtype"], j["shape"], j["tolerance"], j["differ"]) == ("j", "int64", [n], 0.0, 0)
        assert 0 <= y["relative"] < 1e-6
    assert shown["made_up"] == "made up: floats normal, whole numbers and truth values 0 or 1"


def test_islands_text_and_several_sizes_are_compared_too(hjgc: CommandLine, tmp_path: Path) -> None:
    plan = write_function_plan(tmp_path)
    code, shown = verified(hjgc, plan, "--against", tmp_path / "model.onnx", "--size", "K=3")
    assert (code, [call["sizes"] for call in shown["calls"]]) == (0, [{"N": n, "K": 3} for n in (1, 4, 8)])
    assert [(one["name"], one["dtype"]) for one in shown["calls"][0]["outputs"]] == [
        ("y", "float32"),
        ("words", "string"),
    ]


def test_half_precision_has_a_tolerance_that_is_told(hjgc: CommandLine, tmp_path: Path) -> None:
    plan, model = written_as(tmp_path, HALF)
    ran = hjgc("verify", plan, "--against", model)
    assert ran.code == 0
    assert "tolerance by type, as sums in another order round otherwise (computed in float16)" in ran.out
    assert " 0.02 " in ran.out


def test_what_somebody_has_is_compared(hjgc: CommandLine, written: Paths, tmp_path: Path) -> None:
    plan, model = written
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4), np.float32), i=np.arange(3))
    code, shown = verified(hjgc, plan, "--against", model, "--feed", tmp_path / "x.npz")
    assert (code, shown["feed"], shown["made_up"]) == (0, str(tmp_path / "x.npz"), None)
    assert [call["sizes"] for call in shown["calls"]] == [{"N": 3}]


@pytest.mark.parametrize(
    ("model", "line", "remark"),
    [
        (OTHER_FLOATS, "output y, with N=1: first at [0], expected ", False),
        (OTHER_WHOLES, "output j, with N=1: first at [0], expected ", True),
        (OTHER_SHAPE, "output y, with N=1: expected float32 [1, 1], found float32 [1]", False),
    ],
)
def test_the_first_difference_is_named(
    model: str, line: str, remark: bool, hjgc: CommandLine, written: Paths, tmp_path: Path
) -> None:
    plan, _ = written
    _, other = written_as(tmp_path / "other", model)
    ran = hjgc("verify", plan, "--against", other)
    lines = ran.out.splitlines()
    assert (ran.code, lines[-1]) == (1, "different")
    assert any(found.startswith(line) for found in lines)
    assert f"note: {other} is not the file that the plan was compiled from; its values are matched by name" in lines
    assert ("note: whole numbers chosen among rounded ones" in ran.out) is remark


def test_json_has_the_place_and_stops_at_the_first_call_that_differs(
    hjgc: CommandLine, written: Paths, tmp_path: Path
) -> None:
    plan, _ = written
    _, other = written_as(tmp_path / "other", OTHER_FLOATS)
    code, shown = verified(hjgc, plan, "--against", other)
    (call,) = shown["calls"]
    y, j = call["outputs"]
    assert (code, call["equal"], y["equal"], j["equal"], y["differ"]) == (1, False, False, True, 1)
    assert y["first"]["index"] == [0] and y["relative"] > 1e-4
    assert float(y["first"]["found"]) != float(y["first"]["expected"])


def test_a_tolerance_that_is_given_stands_for_all(hjgc: CommandLine, written: Paths, tmp_path: Path) -> None:
    plan, _ = written
    _, other = written_as(tmp_path / "other", OTHER_FLOATS)
    ran = hjgc("verify", plan, "--against", other, "--tolerance", "1000", "--size", "N=2")
    assert ran.code == 0
    assert "; tolerance 1000; whole numbers, truth values and text must be equal" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", "Q=1"), "--size: expected a size of the plan's inputs (N), found 'Q'"),
        (("--size", "N=513"), "--size: expected N of 0 to 512, found 513; compile again with --size N=0:513"),
        (("--size", "N"), "expected NAME=VALUE, say batch=8, found 'N'"),
        (("--steps", "3"), "--steps: expected a decoder with this option, found a plan that is a function"),
        (("--size", "N=1", "--feed", "x.npz"), "--size: expected made-up inputs, found --feed too"),
        (("--feed", "nowhere.npz"), "nowhere.npz: expected a file of arrays, found nothing there"),
        (("--device", "tpu"), "expected a plan for tpu, found one for cpu"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: tuple[str, ...], says: str, hjgc: CommandLine, written: Paths
) -> None:
    plan, model = written
    ran = hjgc("verify", plan, "--against", model, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.error


def test_a_model_of_other_outputs_is_refused(hjgc: CommandLine, written: Paths, tmp_path: Path) -> None:
    _, other = written_as(tmp_path / "other", OTHER_NAME)
    ran = hjgc("verify", written[0], "--against", other)
    assert ran.code == 2
    assert "expected a model with the plan's outputs j, y, found j, z; name the file that the plan was" in ran.error


def test_inputs_that_do_not_fit_are_one_line(hjgc: CommandLine, written: Paths, tmp_path: Path) -> None:
    plan, model = written
    np.savez(tmp_path / "x.npz", x=np.ones((3, 5), np.float32), i=np.arange(3))
    ran = hjgc("verify", plan, "--against", model, "--feed", tmp_path / "x.npz")
    assert (ran.code, ran.error) == (2, "error: input 'x': expected [N, 4], found [3, 5]")


def test_options_of_a_function_need_a_function_and_a_model(hjgc: CommandLine, written: Paths, tmp_path: Path) -> None:
    ran = hjgc("verify", written[0], "--size", "N=1")
    assert (ran.code, ran.error) == (
        2,
        "error: --size: expected --against MODEL.onnx with it, found none; leave --size out",
    )
    (tmp_path / "decoder").mkdir()
    ran = hjgc("verify", write_small_plan(tmp_path / "decoder"), "--feed", "x.npz")
    assert ran.code == 2
    assert "--feed: expected a plan that is a function with this option, found a decoder; leave --feed out" in ran.error
