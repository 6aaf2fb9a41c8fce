"""Do the commands take a plan that is a function, call it, and say why its islands are dynamic?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hjgc.tools.calling import read_arrays, write_arrays
from tests.plan_format.function_plan import write_function_plan
from tests.runtime.functions import write_function
from tests.tools.command_line import CommandLine, write_small_plan

A = np.zeros((2, 4), np.float32)
WHY = "ai.onnx.If chooses what is computed"


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_function_plan(tmp_path_factory.mktemp("function"))


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return written(tmp_path / "x.npz", a=A, go=False, text=["one", "☃"])


def written(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_function_is_called_and_its_outputs_are_written(
    hjgc: CommandLine, function: Path, feed: Path, tmp_path: Path
) -> None:
    ran = hjgc("run", function, "--feed", feed, "-o", tmp_path / "y.npz")
    assert (ran.code, ran.err) == (0, "load\ncall\n")
    assert ran.out.splitlines() == [f"y: float32 [8]: {', '.join(['0.36787945'] * 8)}", "words: object [2]: one, ☃"]
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_allclose(found["y"], np.exp(-np.exp(A)).reshape(-1), rtol=1e-6)
        assert found["words"].tolist() == ["one", "☃"]


def test_arrays_may_have_any_name(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "allow_pickle": np.float32(1), "/a/b:0": np.array(["☃"])}
    write_arrays(tmp_path / "x.npz", arrays)
    found = read_arrays(tmp_path / "x.npz")
    assert {name: array.tolist() for name, array in found.items()} == {
        "file": [0, 1, 2], "allow_pickle": 1.0, "/a/b:0": ["☃"]
    }  # fmt: skip


def test_a_function_is_not_tuned(hjgc: CommandLine, function: Path, tmp_path: Path) -> None:
    ran = hjgc("tune", function, "-o", tmp_path / "tuned.hjg")
    assert ran.code == 2 and "expected a decoder's plan, whose steps can be measured, found one that is" in ran.error


def test_json_tells_shapes_and_the_report(hjgc: CommandLine, function: Path, feed: Path) -> None:
    data = json.loads(hjgc("run", function, "--feed", feed, "--json").out)
    assert data["outputs"] == {
        "y": {"dtype": "float32", "shape": [8]},
        "words": {"dtype": "object", "shape": [2]},
    }
    assert [segment["kind"] for segment in data["report"]["segments"]] == ["static", "dynamic", "static"]
    assert f"since {WHY}" in data["report"]["segments"][1]["reasons"][0]["chain"]


def test_stats_tell_each_segment_and_why(hjgc: CommandLine, function: Path, feed: Path) -> None:
    lines = hjgc("run", function, "--feed", feed, "--stats").err.splitlines()[2:]
    assert [line.split(":")[0] for line in lines] == [
        "segment 0, static, 2 launches",
        "segment 1, dynamic, 2 launches",
        "segment 2, static, 1 launches",
        "islands",
    ]
    assert f"; HOST_CONTROL_FLOW: island.0 <- ONNX node node_3 <- since {WHY}" in lines[1]


HALVES = """halves (bfloat16[N] x) => (bfloat16[N] y, seq(float[N]) items)
{ y = Neg(x) wide = Cast <to = 1> (x) items = SequenceConstruct(wide, wide) }"""


def test_sequences_are_written_by_item_and_foreign_types_by_their_bits(hjgc: CommandLine, tmp_path: Path) -> None:
    plan = write_function(tmp_path, HALVES)
    x = np.array([1, -2], ml_dtypes.bfloat16)
    ran = hjgc("run", plan, "--feed", written(tmp_path / "x.npz", x=x.view(np.uint16)), "-o", tmp_path / "y.npz")
    assert ran.out.splitlines() == ["y: bfloat16 [2]: -1, 2", "items: 2 items"]
    with np.load(tmp_path / "y.npz") as found:
        assert found["y"].view(ml_dtypes.bfloat16).tolist() == [-1, 2]
        assert sorted(found.files) == ["items.0", "items.1", "y"]
        assert found["items.1"].tolist() == [1, -2]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": A, "go": True}, "input 'text': expected tensor(string) [K], found none"),
        ({"a": A, "go": True, "text": ["a"], "b": 1}, "expected inputs among 'a', 'go', 'text', found 'b'"),
        ({"a": A[:, :3], "go": True, "text": ["a"]}, "input 'a': expected [N, 4], found [2, 3]"),
        ({"a": A, "go": 1, "text": ["a"]}, "input 'go': expected bool, found int64"),
        (
            {"a": np.zeros((9, 4), np.float32), "go": True, "text": ["a"]},
            "expected N of 0 to 8, found 9; compile again with --size N=0:9",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(
    arrays: Any, says: str, hjgc: CommandLine, function: Path, tmp_path: Path
) -> None:
    ran = hjgc("run", function, "--feed", written(tmp_path / "x.npz", **arrays))
    assert (ran.code, ran.out, ran.error) == (2, "", f"error: {says}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "expected a file of arrays, found nothing there; see numpy.savez"),
        (b"", "expected arrays by name (.npz), found no archive; see numpy.savez"),
        (b"\x80\x04K\x01.", "expected arrays by name (.npz), found no archive; see numpy.savez"),
        ("one array", "expected arrays by name (.npz), found no archive; see numpy.savez"),
        ("objects", "expected arrays by name (.npz), found one damaged: Object arrays cannot be loaded when"),
        ("bits", "expected arrays by name (.npz), found one damaged: "),
        ("folder", "expected arrays by name (.npz), found no archive; see numpy.savez"),
    ],
)
def test_what_holds_no_arrays_by_name_is_one_line(
    data: Any, says: str, hjgc: CommandLine, function: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.npz"
    match data:
        case bytes():
            path.write_bytes(data)
        case "one array":
            with path.open("wb") as file:
                np.save(file, A)
        case "objects":
            written(path, a=np.array([{}], object))
        case "bits":
            raw = bytearray(written(path, a=np.arange(100)).read_bytes())
            raw[200] ^= 255
            path.write_bytes(raw)
        case "folder":
            path.mkdir()
        case _:
            pass
    ran = hjgc("run", function, "--feed", path)
    assert ran.code == 2
    assert ran.error.startswith(f"error: {path}: {says}")


def test_a_decoder_is_not_fed(hjgc: CommandLine, feed: Path, tmp_path: Path) -> None:
    ran = hjgc("run", write_small_plan(tmp_path), "--feed", feed)
    assert ran.code == 2
    assert "expected a plan that is a function, found a decoder; give it --prompt or --ids" in ran.error


def test_a_function_is_not_prompted(hjgc: CommandLine, function: Path) -> None:
    ran = hjgc("run", function, "--ids", "1")
    assert ran.code == 2
    assert "expected a decoder, found a plan that is a function of its inputs; call it: hjgc.load(plan)" in ran.error


@pytest.mark.parametrize("more", [["--prompt", "a"], ["--ids", "1"]])
def test_one_or_the_other_is_given(more: list[str], hjgc: CommandLine) -> None:
    ran = hjgc("run", "plan.hjg", "--feed", "x.npz", *more)
    assert (ran.code, ran.out) == (2, "")
    assert "expected one of --prompt, --ids and --feed" in ran.error


def test_outputs_do_not_replace_the_plan(hjgc: CommandLine, function: Path, feed: Path) -> None:
    ran = hjgc("run", function, "--feed", feed, "-o", function)
    assert ran.code == 2
    assert "expected a new file, found one of the model's own; choose a name that ends in .npz" in ran.error


def test_what_is_no_decoder_becomes_a_function_with_a_note(hjgc: CommandLine, function: Path, tmp_path: Path) -> None:
    ran = hjgc("compile", function.with_name("model.onnx"), "-o", tmp_path / "plan.hjg")
    assert ran.code == 0
    assert "note: compiled as a function, not as a decoder that is served token by token: " in ran.err
    assert "for cpu, call 5 launches (2 of them islands in ONNX Runtime); " in ran.out


def test_a_kind_that_is_asked_for_is_what_comes(hjgc: CommandLine, function: Path, tmp_path: Path) -> None:
    model, plan = function.with_name("model.onnx"), tmp_path / "plan.hjg"
    as_function = hjgc("compile", model, "-o", plan, "--kind", "function", "--json")
    assert (as_function.code, json.loads(as_function.out)["islands"]) == (0, 2)
    assert "not as a decoder" not in as_function.err
    ran = hjgc("compile", model, "-o", plan, "--kind", "decoder")
    assert ran.code == 2
    assert "expected a decoder with input_ids and logits, found a, go, text, words, y" in ran.error


def test_a_decoder_is_a_function_when_that_is_asked_for(hjgc: CommandLine, model: Path, tmp_path: Path) -> None:
    ran = hjgc("compile", model, "-o", tmp_path / "plan.hjg", "--kind", "function", "--json")
    assert (ran.code, list(json.loads(ran.out)["launches"])) == (0, ["call"])


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("N=4", "expected NAME=LOW:HIGH, say batch=1:8, found 'N=4'"),
        ("N=4:1", "--size: expected N=LOW:HIGH with 0 <= LOW <= HIGH, found 4:1"),
        ("Q=1:4", "--size: expected a size of the model's inputs (N, K), found 'Q'"),
    ],
)
def test_a_size_that_makes_no_sense_is_one_line(
    size: str, says: str, hjgc: CommandLine, function: Path, tmp_path: Path
) -> None:
    ran = hjgc("compile", function.with_name("model.onnx"), "-o", tmp_path / "plan.hjg", "--size", size)
    assert ran.code == 2
    assert says in ran.error


def test_sizes_are_shown_with_what_a_function_takes_and_gives(
    hjgc: CommandLine, function: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.hjg"
    hjgc("compile", function.with_name("model.onnx"), "-o", plan, "--size", "N=2:4", "--size", "K=1:3")
    out = hjgc("inspect", plan, "--launches").out
    for line in (
        "takes a: tensor(float) [N, 4]",
        "gives words: tensor(string) [K]",
        "sizes: N 2..4 (key), K 1..3 (key)",
    ):
        assert line in out.splitlines()
    assert WHY in out
    assert "x0=go, x1=weight, x2=node_2.y0, >y0=picked" in out


@pytest.mark.parametrize("command", ["inspect", "explain"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_the_reason_is_shown(command: str, more: list[str], hjgc: CommandLine, function: Path) -> None:
    ran = hjgc(command, function, *more)
    assert (ran.code, ran.err) == (0, "")
    assert WHY in ran.out


def test_what_to_change_is_said(hjgc: CommandLine, function: Path) -> None:
    out = " ".join(hjgc("explain", function).out.split())
    assert "change in the ONNX file, replace node node_3 by operators that compute both branches and choose" in out
    assert "change in the ONNX file, give node node_6 numbers of a type that buffers hold" in out


def test_the_page_has_the_reason(hjgc: CommandLine, function: Path, tmp_path: Path) -> None:
    ran = hjgc("view", function, "-o", tmp_path / "page.html")
    assert (ran.code, ran.err) == (0, "")
    assert WHY in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_functions_are_compared(hjgc: CommandLine, function: Path, tmp_path: Path) -> None:
    assert "the same plan" in hjgc("diff", function, function).out
    other = tmp_path / "other.hjg"
    hjgc("compile", function.with_name("model.onnx"), "-o", other, "--size", "N=0:4")
    ran = hjgc("diff", function, other)
    assert ran.code == 1
    assert "call" in ran.out


def test_a_function_is_whole_and_legal(hjgc: CommandLine, function: Path) -> None:
    ran = hjgc("verify", function)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "equal")
