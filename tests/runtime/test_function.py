"""Does a function take what fits its plan, say what does not, and work after whatever went wrong?"""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import hjgc
from hjgc import DeadlineExceeded, PlanError, RunError, SessionClosed
from hjgc.plan_format.structs import Island
from hjgc.runtime.island_sessions import in_users_words
from hjgc.runtime.opening import open_session
from tests.runtime.functions import Made, made, write_function

__all__ = ["made"]

Array = Any  # of numpy

PAIR = "pair (float[N,4] a, float[N,M] b) => (c, d) { c = Exp(a) d = Neg(b) }"
"""Two launches that share an axis."""
TRIPS = """trips (int64 trips, bool go, float x) => (y) {
    y = Loop(trips, go, x) <body = step (int64 i, bool on, float a) => (bool still, float b)
        { still = Identity(on) b = Sin(a) }>
}"""
"""An island that runs as long as it is told to."""
TYPES = {"bfloat16": 16, "float8e4m3fn": 17, "int4": 22}
FOR_EVER = {"trips": np.int64(2**62), "go": np.bool_(True), "x": np.float32(1)}
SHORT = FOR_EVER | {"trips": np.int64(2)}
CUT = "cut (int64[2] shape, float[6] x) => (y) { y = Reshape(x, shape) }"
FILL = "fill (int64[1] shape) => (y) { y = ConstantOfShape(shape) }"


def floats(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def check_trips(function: Any) -> None:
    np.testing.assert_allclose(function(SHORT)["y"], np.sin(np.sin(1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": floats(2, 4), "e": floats(2, 3)}, "expected inputs among 'a', 'b', found 'e'"),
        ({"a": floats(2, 4)}, r"input 'b': expected tensor\(float\) \[N, M\], found none"),
        ({"a": floats(2, 4), "b": floats(2, 3).astype(np.float64)}, "input 'b': expected float32, found float64"),
        ({"a": floats(2, 4), "b": np.array(["x"])}, "input 'b': expected float32, found <U1"),
        ({"a": floats(2, 4), "b": [[1.0], [2.0, 3.0]]}, "input 'b': expected float32, found a ragged list"),
        ({"a": floats(2, 4), "b": {}}, "input 'b': expected float32, found object"),
        ({"a": floats(8), "b": floats(2, 3)}, r"input 'a': expected \[N, 4\], found \[8\]"),
        ({"a": floats(2, 5), "b": floats(2, 3)}, r"input 'a': expected \[N, 4\], found \[2, 5\]"),
        ({"a": floats(2, 4), "b": floats(3, 3)}, r"input 'b': expected \[N, M\] \(N = 2\), found \[3, 3\]"),
        ({"a": floats(9, 4), "b": floats(9, 3)}, "expected N of 0 to 8, found 9; compile again with --size N=0:9"),
        ({"a": floats(2, 4), "b": floats(2, 1)}, "expected M of 2 to 4, found 1; compile again with --size M=1:4"),
    ],
)
def test_inputs_that_do_not_fit_are_named(made: Made, inputs: Any, words: str) -> None:
    function = made(PAIR, N=(0, 8), M=(2, 4))
    with pytest.raises(RunError, match=words):
        function(inputs)
    assert function({"a": floats(1, 4), "b": floats(1, 2)})["c"].shape == (1, 4)


def test_arrays_that_look_like_those_of_an_earlier_call_are_not_looked_at_again(made: Made) -> None:
    function, looked = made(PAIR, N=(0, 8), M=(2, 4)), list[Any]()
    check = function._inputs._checked
    function._inputs._checked = lambda inputs: looked.append(inputs) or check(inputs)  # type: ignore[method-assign]
    for n, times in ((2, 1), (2, 1), (3, 2), (2, 2)):
        a, b = floats(n, 4) + times, floats(n, 3)
        np.testing.assert_allclose(function({"b": b, "a": a})["c"], np.exp(a), rtol=1e-6)
        assert len(looked) == times
    for _ in range(2):
        with pytest.raises(RunError, match="input 'b': expected float32, found float64"):
            function({"b": floats(2, 3).astype(np.float64), "a": floats(2, 4)})
    function({"b": floats(2, 3).tolist(), "a": floats(2, 4)})


@pytest.mark.parametrize("rows", [3, 0, 8, 1, 3])
def test_every_call_may_have_other_sizes(made: Made, rows: int) -> None:
    function = made(PAIR, N=(0, 8), M=(2, 4))
    for n in (rows, 8 - rows):
        a, b = floats(n, 4), floats(n, 3)
        found = function({"a": a, "b": b})
        np.testing.assert_allclose(found["c"], np.exp(a), rtol=1e-6)
        np.testing.assert_array_equal(found["d"], -b)


@pytest.mark.parametrize("text", [PAIR, "island (float[N,4] a, float[N,M] b) => (c, d) { c, d = Dropout(b) }"])
def test_what_was_given_back_stays_as_it_is(made: Made, text: str) -> None:
    function = made(text, N=(0, 8), M=(2, 4))
    inputs = {"a": floats(2, 4), "b": floats(2, 3)}
    first = function(inputs)
    copies = {name: array.copy() for name, array in first.items()}
    function({name: array + 1 for name, array in inputs.items()})
    for name, array in copies.items():
        np.testing.assert_array_equal(first[name], array)


def test_plain_numbers_take_the_type_that_is_wanted(made: Made) -> None:
    function = made("sum (float a, int64[N] b, uint8 c) => (x, y, z) { x = Neg(a) y = Neg(b) z = Identity(c) }")
    found = function({"a": 2, "b": [1, 2], "c": 255})
    assert [array.dtype.name for array in found.values()] == ["float32", "int64", "uint8"]
    assert (found["x"], found["y"].tolist(), found["z"]) == (-2, [-1, -2], 255)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": 1, "b": [1.5], "c": 1}, "input 'b': expected int64, found float64"),
        ({"a": 1, "b": [1], "c": 256}, "input 'c': expected uint8, found numbers past it"),
        ({"a": "one", "b": [1], "c": 1}, "input 'a': expected float32, found <U3"),
    ],
)
def test_plain_numbers_that_would_change_are_refused(made: Made, inputs: Any, words: str) -> None:
    function = made("sum (float a, int64[N] b, uint8 c) => (x, y, z) { x = Neg(a) y = Neg(b) z = Identity(c) }")
    with pytest.raises(RunError, match=words):
        function(inputs)


def test_a_scalar_and_an_axis_that_is_no_input_by_itself(made: Made) -> None:
    function = made("ends (float[N,4] a, float s) => (y) { two = Concat <axis = 0> (a, a) y = Mul(two, s) }")
    np.testing.assert_array_equal(function({"a": floats(2, 4), "s": 3.0})["y"], 3 * np.tile(floats(2, 4), (2, 1)))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("bfloat16", ml_dtypes.bfloat16), ("float8e4m3fn", ml_dtypes.float8_e4m3fn), ("int4", ml_dtypes.int4)],
)
def test_types_that_numpy_has_not_are_those_of_ml_dtypes_or_their_bits(made: Made, kind: str, dtype: Any) -> None:
    same = f"Cast <to = {TYPES[kind]}> (y)"
    function = made(f"copy ({kind}[N] x) => (float[N] y, {kind}[N] z) {{ y = Cast <to = 1> (x) z = {same} }}")
    x = np.array([1, -2, 3], dtype)
    bits = x.view(f"uint{8 * x.dtype.itemsize}")
    for given in (x, bits):
        found = function({"x": given})
        assert found["y"].tolist() == [1, -2, 3]
        assert found["z"].dtype == dtype
        assert found["z"].tolist() == x.tolist()
    with pytest.raises(RunError, match=f"input 'x': expected {dtype.__name__}, found uint32"):
        function({"x": bits.astype(np.uint32)})


def test_bits_of_another_width_are_no_bfloat16(made: Made) -> None:
    function = made("copy (bfloat16[N] x) => (y) { y = Neg(x) }")
    with pytest.raises(RunError, match="input 'x': expected bfloat16, found uint8"):
        function({"x": np.zeros(2, np.uint8)})


def test_text_goes_in_and_comes_out(made: Made) -> None:
    function = made("text (string[N] x) => (string[N] y) { y = Identity(x) }")
    assert function({"x": ["one", "☃"]})["y"].tolist() == ["one", "☃"]
    assert function({"x": np.array(["a", "b", "c"], object)})["y"].tolist() == ["a", "b", "c"]
    with pytest.raises(RunError, match="input 'x': expected text, found int64"):
        function({"x": np.arange(2)})


TEXTS = "texts (string[N] t, string[2] u, float[M] x) => (y, v) { a = Cast <to = 1> (t) y = Neg(a) v = Identity(u) }"
PLAIN = {"t": ["1", "2", "3"], "u": ["a", "b"], "x": [1.0]}


def test_sizes_may_be_those_of_what_only_the_host_holds(made: Made) -> None:
    function = made(TEXTS, N=(0, 3))
    for n in (3, 0, 2):
        texts = np.array(["1", "2", "3"][:n], str)
        assert function(PLAIN | {"t": texts})["y"].tolist() == [-1, -2, -3][:n]
    eighths = made("eighths (float8e4m3fn[N,4] x) => (y) { a = Cast <to = 1> (x) y = Neg(a) }")
    np.testing.assert_array_equal(eighths({"x": np.ones((3, 4), ml_dtypes.float8_e4m3fn)})["y"], -np.ones((3, 4)))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"t": np.array(["1"] * 4)}, "expected N of 0 to 3, found 4; compile again with --size N=0:4"),
        ({"t": np.array([["1"]])}, r"input 't': expected \[N\], found \[1, 1\]"),
        ({"u": ["a", "b", "c"]}, r"input 'u': expected \[2\], found \[3\]"),
        ({"u": "a"}, r"input 'u': expected \[2\], found \[\]"),
        ({"u": np.array(["a", 1], object)}, "input 'u': expected text, found int among it"),
        ({"u": [None, "a"]}, "input 'u': expected text, found NoneType among it"),
    ],
)
def test_what_only_the_host_holds_is_checked_like_any_other_array(made: Made, inputs: Any, words: str) -> None:
    function = made(TEXTS, N=(0, 3))
    with pytest.raises(RunError, match=words):
        function(PLAIN | inputs)
    assert function(PLAIN)["y"].tolist() == [-1, -2, -3]


def test_text_of_other_axes_than_an_array_beside_it_is_refused(made: Made) -> None:
    function = made("beside (string[N] t, float[N] x) => (y) { a = Cast <to = 1> (t) y = Add(a, x) }")
    assert function({"t": ["1", "2"], "x": [1.0, 2.0]})["y"].tolist() == [2, 4]
    with pytest.raises(RunError, match=r"input 'x': expected \[N\] \(N = 2\), found \[3\]"):
        function({"t": ["1", "2"], "x": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize("word", ["1", "no number"])
def test_nothing_keeps_the_arguments_of_a_call_that_has_ended(made: Made, word: str) -> None:
    function, text = made(TEXTS), np.array([word], object)
    held = weakref.ref(text)
    with suppress(RunError):
        function(PLAIN | {"t": text})
    del text
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("inputs", [None, [1], 5])
def test_inputs_without_names_are_refused(made: Made, inputs: Any) -> None:
    with pytest.raises(RunError, match=f"expected inputs by name, .* found {type(inputs).__name__}"):
        made(PAIR)(inputs)


SEQUENCE = """sequence (seq(float[N]) x, float[N] more) => (seq(float[N]) y, int64 count)
{ y = SequenceInsert(x, more) count = SequenceLength(y) }"""


def test_sequences_are_lists(made: Made) -> None:
    function = made(SEQUENCE)
    for before in ([], [floats(3)], [floats(2), floats(5)]):
        found = function({"x": before, "more": floats(4)})
        assert [item.shape for item in found["y"]] == [*(item.shape for item in before), (4,)]
        assert found["count"] == len(before) + 1
    with pytest.raises(RunError, match=r"input 'x': expected seq\(tensor\(float\)\), found none"):
        function({"more": floats(4)})
    with pytest.raises(RunError, match=r"input 'x': expected seq\(tensor\(float\)\), found ndarray"):
        function({"x": floats(4), "more": floats(4)})


OPTIONAL = """optional (optional(float[N]) x) => (bool there, optional(float[N]) y)
{ there = OptionalHasElement(x) y = Identity(x) }"""


def test_an_optional_is_a_value_or_none(made: Made) -> None:
    function = made(OPTIONAL)
    found = function({"x": floats(3)})
    assert found["there"]
    np.testing.assert_array_equal(found["y"], floats(3))
    for absent in ({}, {"x": None}):
        found = function(absent)
        assert (bool(found["there"]), found["y"]) == (False, None)


def test_axes_of_nothing_go_through_launches_and_islands(made: Made) -> None:
    function = made("none (float[N,0] a, float[M] b) => (c, d, e) { c = Exp(a) d = NonZero(b) e = Exp(b) }", M=(0, 4))
    found = function({"a": floats(2, 0), "b": floats(0)})
    assert [array.shape for array in found.values()] == [(2, 0), (1, 0), (0,)]


def test_a_function_of_nothing_but_empty_axes(made: Made) -> None:
    assert made("none (float[0] a) => (b) { b = Exp(a) }")({"a": floats(0)})["b"].shape == (0,)


def test_a_closed_function_says_so_and_may_be_closed_again(made: Made) -> None:
    function = made(PAIR)
    function.close()
    function.close()
    assert function.closed
    with pytest.raises(SessionClosed):
        function({"a": floats(2, 4), "b": floats(2, 3)})


def test_a_deadline_ends_an_island_and_names_its_nodes(made: Made) -> None:
    function = made(TRIPS)
    with pytest.raises(DeadlineExceeded, match=r"the deadline passed in a dynamic segment .*ONNX node .*Loop"):
        function(FOR_EVER, deadline=0.05)
    check_trips(function)


def test_a_deadline_that_has_passed_ends_a_call_before_its_first_launch(made: Made) -> None:
    function = made(PAIR)
    inputs = {"a": floats(2, 4), "b": floats(2, 3)}
    with pytest.raises(DeadlineExceeded, match="to end within 0 s, found its deadline passed"):
        function(inputs, deadline=0)
    assert function(inputs, deadline=60)["c"].shape == (2, 4)


def test_another_thread_cancels_an_island(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    function, entered, errors = made(TRIPS), threading.Event(), list[RunError]()
    run = function._backend.run

    def announced(*arguments: Any) -> bool:
        entered.set()
        return run(*arguments)

    def call() -> None:
        try:
            function(FOR_EVER, deadline=60)
        except RunError as error:
            errors.append(error)

    monkeypatch.setattr(function._backend, "run", announced)
    caller = threading.Thread(target=call)
    caller.start()
    assert entered.wait(60)
    function.cancel()
    caller.join(60)
    assert "the call was cancelled in a dynamic segment (island.0 <- ONNX node" in str(errors[0])
    check_trips(function)


def test_a_cancellation_between_calls_is_of_neither(made: Made) -> None:
    function = made(TRIPS)
    function.cancel()
    check_trips(function)


def test_islands_that_draw_alike_draw_other_numbers(made: Made) -> None:
    function = made(
        "f (float[8] a) => (x, y, z) { x = RandomNormalLike(a) b = Exp(x) y = RandomNormalLike(b) c = Exp(y) "
        "d = Mul(a, c) z = RandomNormalLike(d) }"
    )
    drawn = [array.tobytes() for _ in range(3) for array in function({"a": floats(8)}).values()]
    assert len(set(drawn)) == len(drawn) == 9
    assert function.report()["islands"]["islands"] == 3


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        (CUT, {"shape": np.array([4, 2]), "x": floats(6)}, {"shape": np.array([3, -1]), "x": floats(6)}),
        (FILL, {"shape": np.array([2**45])}, {"shape": np.array([3])}),
    ],
    ids=["shape", "memory"],
)
def test_an_island_that_fails_names_its_nodes(made: Made, text: str, wrong: Any, right: Any) -> None:
    function = made(text)
    for _ in range(2):
        with pytest.raises(RunError, match=r"island\.0 \(ONNX nodes .*\) failed in ONNX Runtime: ") as raised:
            function(wrong)
        assert "Name:'node'" in str(raised.value), "the user's name, in what ONNX Runtime says too"
        assert function(right)["y"].shape[0] == 3


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("Name:'1' Status Message: no", "Name:'second' Status Message: no"),
        ("node with name '0.1.2' failed", "node with name 'first' failed"),
        ("Name:'2'", "Name:'2'"),
        (f"Name:'{'1' * 5000}'", f"Name:'{'1' * 5000}'"),
    ],
)
def test_numbers_of_nodes_become_the_names_of_the_users_file(words: str, found: str) -> None:
    assert in_users_words(words, Island("island.0", 0, 0, "", (), (), ("first", "second"))) == found


def test_a_launch_that_fails_names_its_node(made: Made) -> None:
    function = made("pick (float[5] x, int64[N] places) => (y) { y = Gather(x, places) }")
    with pytest.raises(RunError, match=r"launch 'node' \(gather\) failed: expected numbers of -5 to 4, found 1 to 7"):
        function({"x": floats(5), "places": np.array([1, 7])})
    np.testing.assert_array_equal(function({"x": floats(5), "places": [1, -1]})["y"], floats(5)[[1, -1]])


def test_a_report_tells_calls_and_why_a_segment_is_dynamic(made: Made) -> None:
    function = made(TRIPS)
    check_trips(function)
    report = function.report()
    (segment,) = report["segments"]
    assert (report["calls"], report["islands"]["islands"], report["islands"]["runs"]) == (1, 1, 1)
    assert (segment["kind"], segment["runs"]) == ("dynamic", 1)
    assert segment["reasons"][0]["code"] == "HOST_CONTROL_FLOW"


def test_a_function_is_no_session(tmp_path: Path) -> None:
    plan = write_function(tmp_path, PAIR)
    with pytest.raises(PlanError, match=r"expected a decoder, found a plan that is a function .*hjgc\.load\(plan\)"):
        open_session(plan)
    with hjgc.load(plan, graph_bytes=0, capture=False, strict=True, trust="plan") as function:
        assert [port.name for port in function.inputs + function.outputs] == ["a", "b", "c", "d"]
    with pytest.raises(RunError, match=r"expected options among .*, found 'nonsense'"):
        hjgc.load(tmp_path / "not opened.hjg", nonsense=1)
    with pytest.raises(RunError, match="expected no functions of the caller's for a plan that is a function"):
        hjgc.load(plan, functions={"f": lambda rows: rows})
